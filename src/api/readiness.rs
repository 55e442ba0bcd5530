//! What probes ask of Postgres, and what was found out before.
//!
//! Keeps probes cheap: many that ask share one statement.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use crate::store::{Store, denial::Denial};

/// An answer of Postgres counts for so long.
const ANSWER_COUNTS_FOR: Duration = Duration::from_secs(2);
/// A probe waits for so long.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// What was found out before.
#[derive(Debug, Default)]
pub struct Readiness {
    answered_at: Mutex<Option<Instant>>,
    is_migrated: AtomicBool,
}

impl Readiness {
    /// Whether Postgres answered of late. Probes come one at a time: many that ask share one.
    pub async fn answers(&self, store: &Store) -> bool {
        let mut answered_at = self.answered_at.lock().await;
        if answered_at.is_some_and(|at| at.elapsed() < ANSWER_COUNTS_FOR) {
            return true;
        }
        let answer = tokio::time::timeout(PROBE_MAX, store.probe()).await;
        *answered_at = matches!(answer, Ok(Ok(()))).then(Instant::now);
        answered_at.is_some()
    }

    /// Whether the schema is this release's. Once it was, it stays so.
    pub async fn is_migrated(&self, store: &Store) -> bool {
        let known = &self.is_migrated;
        if !known.load(Ordering::Relaxed) {
            let answer = tokio::time::timeout(PROBE_MAX, store.is_migrated()).await;
            known.store(matches!(answer, Ok(Ok(true))), Ordering::Relaxed);
        }
        known.load(Ordering::Relaxed)
    }
}

/// Why logins are refused, where they are. Asks again as often as that may be done: connections that are there may
/// serve for half an hour, and nobody else would knock.
pub async fn refusal(store: &Store) -> Option<Denial> {
    if store.refusal().is_some() {
        let _ = tokio::time::timeout(PROBE_MAX, store.knock()).await;
    }
    store.refusal()
}
