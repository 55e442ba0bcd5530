//! The queue for writes of turns that another session has locked.
//!
//! Remembers recent locks: each locked turn would delay its batch until the lock timeout, so for 30 s after one is
//! found every batch is checked for locked turns before it is written.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

/// How long further locked turns are expected after one was found.
const LOCKS_LAST: Duration = Duration::from_secs(30);

/// The sender to the task for locked turns.
pub(super) struct Aside<T> {
    held: mpsc::Sender<T>,
    /// When a locked turn was last found.
    met_at: Mutex<Option<Instant>>,
}

impl<T> Aside<T> {
    /// A queue without any lock found yet.
    pub(super) fn new(held: mpsc::Sender<T>) -> Aside<T> {
        Aside { held, met_at: Mutex::default() }
    }

    /// Whether a locked turn was found within the last 30 s.
    pub(super) fn locks_are_about(&self) -> bool {
        let met_at = *self.met_at.lock();
        met_at.is_some_and(|at| at.elapsed() < LOCKS_LAST)
    }

    /// Notes that a locked turn was found.
    pub(super) fn note(&self) {
        *self.met_at.lock() = Some(Instant::now());
    }

    /// Hands a write over. Never fails: the receiving task lives as long as the sending one.
    pub(super) async fn take(&self, asked: T) {
        let _ = self.held.send(asked).await;
    }
}
