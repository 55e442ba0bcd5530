//! Reachability of Postgres: when it last answered this process, when it was last lost, and a signal for its return.
//!
//! Decided by the beat, which queries twice a second. While the beat cannot connect nothing else tries: a stalled
//! Postgres answers all pending logins when it resumes, and hundreds of them kept it from its work. Statements in
//! flight before an outage usually hang after it: a cut network sends no RST.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::{denial::Denial, outage::Outage};
use crate::store::error::{FailureReach, StoreError};

/// When Postgres last answered, and when it was last lost.
#[derive(Debug)]
pub(in crate::store) struct Reachability {
    began: Instant,
    /// Milliseconds since `began`, plus one; 0 for never.
    heard: AtomicU64,
    lost: AtomicU64,
    /// When any connection last ended unexpectedly.
    broke: AtomicU64,
    is_lost: AtomicBool,
    regained: Notify,
    /// Number of database URLs whose logins are currently rejected.
    refused: AtomicU32,
    /// The last denial of a statement, and its time.
    denied: Mutex<Option<(Denial, Instant)>>,
    outage: Outage,
}

impl Default for Reachability {
    fn default() -> Self {
        Reachability {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            broke: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
            regained: Notify::new(),
            refused: AtomicU32::new(0),
            denied: Mutex::default(),
            outage: Outage::default(),
        }
    }
}

impl Reachability {
    /// Notes an answer.
    pub(in crate::store) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
        self.outage.answered(!self.is_lost() && !self.is_refused());
    }

    /// Notes a failure.
    pub(in crate::store) fn failed(&self, reach: FailureReach, why: &StoreError) {
        if why.is_away() {
            if reach == FailureReach::Connection {
                self.broke();
            } else if let Some(denial) = why.denial() {
                *self.denied.lock() = Some((denial, Instant::now()));
            }
            self.outage.failed(reach, why);
        }
    }

    /// The denial of a statement within the last `time`, if any.
    pub(in crate::store) fn denied_within(&self, time: Duration) -> Option<Denial> {
        let denied = *self.denied.lock();
        denied.filter(|(_, at)| at.elapsed() < time).map(|(denial, _)| denial)
    }

    /// Notes that a connection ended unexpectedly: the next login may be rejected.
    pub(in crate::store) fn broke(&self) {
        self.broke.store(self.now(), Ordering::Relaxed);
    }

    pub(in crate::store) fn did_break_within(&self, time: Duration) -> bool {
        self.is_within(&self.broke, time)
    }

    /// Notes that logins with one database URL are rejected from now on.
    pub(in crate::store) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that logins with one database URL succeed again.
    pub(in crate::store) fn let_in(&self) {
        self.refused.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire) > 0
    }

    /// Notes that the beat has connected.
    pub(in crate::store) fn made(&self) {
        if self.is_lost.swap(false, Ordering::AcqRel) {
            self.regained.notify_waiters();
        }
        self.heard();
    }

    /// Notes that the beat's connection broke or could not be opened.
    pub(in crate::store) fn lost(&self) {
        self.lost.store(self.now(), Ordering::Relaxed);
        self.is_lost.store(true, Ordering::Release);
    }

    /// Whether the beat has no connection.
    pub(in crate::store) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Waits until the beat has a connection, if it had lost one.
    pub(in crate::store) async fn there(&self) {
        let regained = self.regained();
        if self.is_lost() {
            regained.await;
        }
    }

    /// Completes when the beat reconnects after a loss, now or later.
    pub(in crate::store) fn regained(&self) -> Notified<'_> {
        self.regained.notified()
    }

    pub(in crate::store) fn was_heard_within(&self, time: Duration) -> bool {
        self.is_within(&self.heard, time)
    }

    pub(in crate::store) fn was_lost_within(&self, time: Duration) -> bool {
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
