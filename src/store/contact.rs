//! Contact with Postgres: when it last answered this process, when the connection was last lost, and the
//! moment in which it is there again.
//!
//! Judged by the beat, which asks twice a second. While it cannot connect, nobody else here tries: a
//! Postgres that stalls answers every knock when it goes on, and hundreds of them kept it from its work.
//! What was asked over another connection before contact was lost mostly waits in vain when it is there
//! again: a cut network resets nothing.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

/// When Postgres was last heard, and last lost.
#[derive(Debug)]
pub(super) struct Contact {
    began: Instant,
    /// Milliseconds after `began`, and one; 0 for never.
    heard: AtomicU64,
    lost: AtomicU64,
    is_lost: AtomicBool,
    regained: Notify,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
            regained: Notify::new(),
        }
    }
}

impl Contact {
    /// It answered.
    pub(super) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// The beat has connected.
    pub(super) fn made(&self) {
        self.heard();
        if self.is_lost.swap(false, Ordering::AcqRel) {
            self.regained.notify_waiters();
        }
    }

    /// The beat's connection broke, or none could be made.
    pub(super) fn lost(&self) {
        self.lost.store(self.now(), Ordering::Relaxed);
        self.is_lost.store(true, Ordering::Release);
    }

    /// Whether the beat has no connection.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Until the beat has a connection, where it had lost it.
    pub(super) async fn there(&self) {
        let regained = self.regained();
        if self.is_lost() {
            regained.await;
        }
    }

    /// When contact that is lost now, or later, is there again.
    pub(super) fn regained(&self) -> Notified<'_> {
        self.regained.notified()
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
