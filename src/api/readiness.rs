//! Readiness checks of Postgres, with a cache.
//!
//! Keeps probes cheap: concurrent probes share one statement.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use crate::store::{Store, denial::Denial};

/// How long a successful check is cached.
const ANSWER_COUNTS_FOR: Duration = Duration::from_secs(2);
/// Timeout of a check.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// Cached results.
#[derive(Debug, Default)]
pub struct Readiness {
    answered_at: Mutex<Option<Instant>>,
    is_migrated: AtomicBool,
}

impl Readiness {
    /// Whether Postgres has answered recently. Checks run one at a time, so concurrent probes share one.
    pub async fn answers(&self, store: &Store) -> bool {
        let mut answered_at = self.answered_at.lock().await;
        if answered_at.is_some_and(|at| at.elapsed() < ANSWER_COUNTS_FOR) {
            return true;
        }
        let answer = tokio::time::timeout(PROBE_MAX, store.probe()).await;
        *answered_at = matches!(answer, Ok(Ok(()))).then(Instant::now);
        answered_at.is_some()
    }

    /// Whether the schema is this release's. A positive result is cached for good.
    pub async fn is_migrated(&self, store: &Store) -> bool {
        let known = &self.is_migrated;
        if !known.load(Ordering::Relaxed) {
            let answer = tokio::time::timeout(PROBE_MAX, store.is_migrated()).await;
            known.store(matches!(answer, Ok(Ok(true))), Ordering::Relaxed);
        }
        known.load(Ordering::Relaxed)
    }
}

/// Why Postgres refuses logins; `None` if it does not. After a refusal this tries to log in again (rate-limited):
/// pooled connections may last for half an hour, and nothing else would try.
pub async fn refusal(store: &Store) -> Option<Denial> {
    if store.refusal().is_some() {
        let _ = tokio::time::timeout(PROBE_MAX, store.knock()).await;
    }
    store.refusal()
}
