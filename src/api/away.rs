//! Requests that wait until Postgres is reachable again.
//!
//! Keeps I1: a statement without an answer may have been committed, so the identical statement is repeated until its
//! result is known.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::StoreError;

/// How long a statement with an unknown result is repeated.
const UNKNOWN_COMMIT_MAX: Duration = Duration::from_secs(2);

/// Repeats an identical statement while Postgres is unreachable: for two seconds, but at least once, because even a
/// statement that took longer may have been committed.
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
