//! Contact with Postgres: when it last answered this process, and when the connection was last lost.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// When Postgres was last heard, and last lost.
#[derive(Debug)]
pub(super) struct Contact {
    began: Instant,
    /// Milliseconds after `began`, and one; 0 for never.
    heard: AtomicU64,
    lost: AtomicU64,
}

impl Default for Contact {
    fn default() -> Self {
        Contact { began: Instant::now(), heard: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }
}

impl Contact {
    /// It answered.
    pub(super) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// A connection broke, or none could be made.
    pub(super) fn lost(&self) {
        self.lost.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn was_heard_within(&self, time: Duration) -> bool {
        self.is_within(&self.heard, time)
    }

    pub(super) fn was_lost_within(&self, time: Duration) -> bool {
        self.is_within(&self.lost, time)
    }

    fn is_within(&self, moment: &AtomicU64, time: Duration) -> bool {
        let moment = moment.load(Ordering::Relaxed);
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        moment > 0 && self.now() - moment <= ms
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}
