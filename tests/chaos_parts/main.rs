//! The parts of the chaos harness work, against real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::disallowed_methods,
    reason = "these parts stand outside a replica, and ask Postgres by SQL of their own"
)]
#![allow(dead_code, reason = "the harness uses more of the parts than their own tests do")]

mod commits;
mod nets;
mod pairs;
#[path = "../support/pooler.rs"]
mod pooler;
mod poolers;
#[path = "../chaos/proxy.rs"]
mod proxy;
#[path = "../chaos/standby.rs"]
mod standby;

use std::time::{Duration, Instant};

/// How long something may take that must happen at all. Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until it holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
