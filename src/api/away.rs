//! An absence of Postgres that a request waits out.
//!
//! Keeps I1: a statement that is given up may have been committed, so the very same one is sent again until that
//! is known.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::StoreError;

/// How long a commit that is not known is asked for again.
const UNKNOWN_COMMIT_MAX: Duration = Duration::from_secs(2);

/// Repeats an identical statement while Postgres is away: for two seconds, but at least once, since a
/// statement that was given up after longer may have been committed.
pub async fn insist<T, F>(mut statement: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let until = Instant::now() + UNKNOWN_COMMIT_MAX;
    let mut is_first = true;
    loop {
        match statement().await {
            Err(why) if why.is_away() && (is_first || Instant::now() < until) => {
                is_first = false;
                tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
            }
            other => return other,
        }
    }
}
