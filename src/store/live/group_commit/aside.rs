//! Where writes go whose turn somebody else has locked.
//!
//! Remembers for a while that locked turns are about: each would hold up its batch for as long as a statement waits, so
//! they are looked for before a batch is written.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

/// After a locked turn others are expected to be locked for so long.
const LOCKS_LAST: Duration = Duration::from_secs(30);

/// The way to the task that waits for locks.
pub(super) struct Aside<T> {
    held: mpsc::Sender<T>,
    /// When a locked turn was met last.
    met_at: Mutex<Option<Instant>>,
}

impl<T> Aside<T> {
    /// No locked turn was met yet.
    pub(super) fn new(held: mpsc::Sender<T>) -> Aside<T> {
        Aside { held, met_at: Mutex::default() }
    }

    /// Whether a locked turn was met lately.
    pub(super) fn locks_are_about(&self) -> bool {
        let met_at = *self.met_at.lock().unwrap_or_else(PoisonError::into_inner);
        met_at.is_some_and(|at| at.elapsed() < LOCKS_LAST)
    }

    /// A locked turn was met.
    pub(super) fn note(&self) {
        *self.met_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Hands a write over. The task that takes it lasts as long as the one that asks.
    pub(super) async fn take(&self, asked: T) {
        let _ = self.held.send(asked).await;
    }
}
