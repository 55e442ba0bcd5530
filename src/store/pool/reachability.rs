//! Whether Postgres is reached: when it last answered this process, when the connection was last lost, and the
//! moment in which it is there again.
//!
//! Judged by the beat, which asks twice a second. While it cannot connect, nobody else here tries: a
//! Postgres that stalls answers every knock when it goes on, and hundreds of them kept it from its work.
//! Statements in flight before an outage usually hang after it: a cut network sends no RST.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::{denial::Denial, outage::Outage};
use crate::store::error::{FailureReach, StoreError};

/// When Postgres was last heard, and last lost.
#[derive(Debug)]
pub(in crate::store) struct Reachability {
    began: Instant,
    /// Milliseconds after `began`, and one; 0 for never.
    heard: AtomicU64,
    lost: AtomicU64,
    /// When any connection ended that should not have.
    broke: AtomicU64,
    is_lost: AtomicBool,
    regained: Notify,
    /// Database URLs by which logins are refused just now.
    refused: AtomicU32,
    /// What a statement was denied last, and when.
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
    /// It answered.
    pub(in crate::store) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
        self.outage.answered(!self.is_lost() && !self.is_refused());
    }

    /// Something that was asked of it failed.
    pub(in crate::store) fn failed(&self, reach: FailureReach, why: &StoreError) {
        if why.is_away() {
            if reach == FailureReach::Connection {
                self.broke();
            } else if let Some(denial) = why.denial() {
                *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some((denial, Instant::now()));
            }
            self.outage.failed(reach, why);
        }
    }

    /// What a statement was denied within this time.
    pub(in crate::store) fn denied_within(&self, time: Duration) -> Option<Denial> {
        let denied = *self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.filter(|(_, at)| at.elapsed() < time).map(|(denial, _)| denial)
    }

    /// A connection ended that should not have: what lets logins in may have changed.
    pub(in crate::store) fn broke(&self) {
        self.broke.store(self.now(), Ordering::Relaxed);
    }

    pub(in crate::store) fn did_break_within(&self, time: Duration) -> bool {
        self.is_within(&self.broke, time)
    }

    /// Logins by one database URL are refused from now on.
    pub(in crate::store) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::AcqRel);
    }

    /// And are let in again.
    pub(in crate::store) fn let_in(&self) {
        self.refused.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire) > 0
    }

    /// The beat has connected.
    pub(in crate::store) fn made(&self) {
        if self.is_lost.swap(false, Ordering::AcqRel) {
            self.regained.notify_waiters();
        }
        self.heard();
    }

    /// The beat's connection broke, or none could be made.
    pub(in crate::store) fn lost(&self) {
        self.lost.store(self.now(), Ordering::Relaxed);
        self.is_lost.store(true, Ordering::Release);
    }

    /// Whether the beat has no connection.
    pub(in crate::store) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Until the beat has a connection, where it had lost it.
    pub(in crate::store) async fn there(&self) {
        let regained = self.regained();
        if self.is_lost() {
            regained.await;
        }
    }

    /// When a connection that is lost now, or later, is there again.
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
