//! Many cases in one test, since they share a cluster: run concurrently, each reported by its name.

use std::{panic::AssertUnwindSafe, pin::Pin};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

/// Cases at once. Each has a few processes, and machines have few cores.
const AT_ONCE: usize = 10;

/// A case and its name.
pub type Case<'a> = (&'static str, Pin<Box<dyn Future<Output = ()> + 'a>>);

/// The variable that picks cases: those whose name contains it.
const PICK: &str = "CASE";

/// Runs every case, and fails with the names of those that failed.
pub async fn all(mut cases: Vec<Case<'_>>) {
    cases.retain(|(name, _)| is_picked(name));
    assert!(!cases.is_empty(), "no case is named like {PICK}={:?}", std::env::var(PICK));
    let count = cases.len();
    let runs = cases.into_iter().map(async |(name, case)| {
        let began = Instant::now();
        let end = AssertUnwindSafe(case).catch_unwind().await;
        let verdict = if end.is_ok() { "ok" } else { "FAILED" };
        eprintln!("case {name} ... {verdict} ({:.1} s)", began.elapsed().as_secs_f64());
        end.is_err().then_some(name)
    });
    let failed: Vec<&str> =
        stream::iter(runs).buffer_unordered(AT_ONCE).filter_map(async |name| name).collect().await;
    assert!(failed.is_empty(), "{} of {count} cases failed: {}", failed.len(), failed.join(", "));
}

/// Whether a case of this name is to run.
pub fn is_picked(name: &str) -> bool {
    std::env::var(PICK).map_or(true, |picked| name.contains(&picked))
}

/// The named functions as cases of one cluster.
#[macro_export]
macro_rules! cases {
    ($cluster:expr; $($case:path),+ $(,)?) => {
        vec![$((stringify!($case), Box::pin($case($cluster)) as _)),+]
    };
}
