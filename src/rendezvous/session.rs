//! A remote worker that calls this replica: its poll, what it was promised, and whether it is heard.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::liveness::Liveness;
use crate::{
    id::{ConversationId, TurnId},
    store::remote_workers::RemoteWorker,
};

/// A worker that calls.
#[derive(Debug)]
pub struct WorkerSession {
    worker: RemoteWorker,
    token_hash: [u8; 32],
    expires_at: Option<DateTime<Utc>>,
    liveness: Arc<Liveness>,
    /// Its newest poll, and for how many turns that waits; 0 where it does not.
    polled: Mutex<(u64, u32)>,
    /// Its newest beat that waits.
    listened: AtomicU64,
    /// Turns that were claimed for it and that it has not been told of.
    promised: AtomicU32,
    offers: Mutex<Vec<TurnOffer>>,
    is_leaving: AtomicBool,
    is_stopped: AtomicBool,
    is_refused: AtomicBool,
    news: Notify,
}

/// A turn that its worker may take.
#[derive(Debug)]
pub struct TurnOffer {
    /// Which turn.
    pub turn: TurnId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// The attempt.
    pub epoch: i32,
    /// Its place in the conversation.
    pub ordinal: i64,
    /// Opens the turn's route until its last word.
    pub token: String,
    /// The native protocol's `turn`, as JSON text.
    pub message: String,
    /// Counts until the worker was told.
    pub guard: OfferGuard,
}

/// A turn that is claimed for a worker, until the worker was told of it.
#[derive(Debug)]
pub struct OfferGuard(Arc<WorkerSession>);

impl OfferGuard {
    /// Whom it was given.
    pub fn session(&self) -> &Arc<WorkerSession> {
        &self.0
    }
}

impl Drop for OfferGuard {
    fn drop(&mut self) {
        self.0.promised.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WorkerSession {
    pub(super) fn new(worker: RemoteWorker, token_hash: [u8; 32], expires_at: Option<DateTime<Utc>>) -> Self {
        WorkerSession {
            worker,
            token_hash,
            expires_at,
            liveness: Arc::default(),
            polled: Mutex::default(),
            listened: AtomicU64::new(0),
            promised: AtomicU32::new(0),
            offers: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    /// Who it is.
    pub fn worker(&self) -> &RemoteWorker {
        &self.worker
    }

    /// SHA-256 of the token that it came with.
    pub fn token_hash(&self) -> &[u8; 32] {
        &self.token_hash
    }

    /// Whether it is heard.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// It takes no more turns; a poll of its that is open ends.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.wake();
    }

    /// An operator wants it to end.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.leave();
    }

    /// Its token lets nobody in any more: what it waits for ends.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Release);
        self.leave();
    }

    /// Whether its token lets it in, at this time of the database's.
    pub fn is_let_in(&self, now: DateTime<Utc>) -> bool {
        !self.is_refused.load(Ordering::Acquire) && self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether an operator wants it to end.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Whether it takes no more turns.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// For how many turns it waits that it was not promised.
    pub fn room(&self) -> u32 {
        if self.is_leaving() {
            return 0;
        }
        let (_, room) = *self.polled();
        room.saturating_sub(self.promised.load(Ordering::Acquire))
    }

    /// Promises it a turn.
    pub fn offer_guard(self: &Arc<Self>) -> OfferGuard {
        self.promised.fetch_add(1, Ordering::AcqRel);
        OfferGuard(self.clone())
    }

    /// Puts an offer where its next look finds it.
    pub fn offer(&self, offer: TurnOffer) {
        self.offers().push(offer);
        self.wake();
    }

    /// Takes an offer back; false where the worker may have been told.
    pub fn withdraw(&self, turn: TurnId, epoch: i32) -> bool {
        let mut offers = self.offers();
        let before = offers.len();
        offers.retain(|offer| (offer.turn, offer.epoch) != (turn, epoch));
        offers.len() < before
    }

    /// Waits for turns: for so many, until then. While it waits it can be promised some. A wait that was there
    /// before ends: one of each worker is enough, and more would have no bound.
    pub fn poll(self: &Arc<Self>, room: u32) -> Polling {
        let number = {
            let mut polled = self.polled();
            *polled = (polled.0 + 1, room);
            polled.0
        };
        self.wake();
        Polling { session: self.clone(), number }
    }

    /// Listens for what it is to be told. Whoever listened before is told nothing more, as with [`WorkerSession::poll`].
    pub fn listen(&self) -> u64 {
        let number = self.listened.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        number
    }

    /// Whether somebody listens anew since this one began.
    pub fn is_heard_anew(&self, number: u64) -> bool {
        self.listened.load(Ordering::Acquire) != number
    }

    /// There is something to see.
    pub fn wake(&self) {
        self.news.notify_waiters();
    }

    /// Looks until there is something to see, or until then. Cancel-safe.
    pub async fn look_until<T>(&self, until: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // First the interest, then the look.
            news.as_mut().enable();
            if let Some(seen) = look() {
                return Some(seen);
            }
            if timeout_at(until, news).await.is_err() {
                return None;
            }
        }
    }

    fn polled(&self) -> MutexGuard<'_, (u64, u32)> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offers(&self) -> MutexGuard<'_, Vec<TurnOffer>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's wait for turns; its drop ends it, unless the worker waits anew: a poll that broke off may be
/// noticed after the next has come.
#[derive(Debug)]
pub struct Polling {
    session: Arc<WorkerSession>,
    number: u64,
}

impl Polling {
    /// Offers, at least one; none where the wait is over, or `is_over` says so.
    pub async fn offers(&self, wait: Duration, is_over: impl Fn() -> bool) -> Vec<TurnOffer> {
        let session = &self.session;
        let look = || {
            if session.polled().0 != self.number {
                // What there is is for the newer one.
                return Some(Vec::new());
            }
            let offers = std::mem::take(&mut *session.offers());
            (!offers.is_empty() || session.is_leaving() || is_over()).then_some(offers)
        };
        session.look_until(Instant::now() + wait, look).await.unwrap_or_default()
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        let mut polled = self.session.polled();
        if polled.0 == self.number {
            polled.1 = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::WorkerId;

    #[test]
    fn a_poll_that_is_noticed_late_to_have_broken_off_does_not_end_the_next() {
        let (id, agent) = (WorkerId(Uuid::nil()), "a".to_owned());
        let worker = RemoteWorker { id, agent, agent_revision: 1, conversation: None, name: None };
        let session = Arc::new(WorkerSession::new(worker, [0; 32], None));
        let first = session.poll(2);
        let second = session.poll(3);
        drop(first);
        assert_eq!(session.room(), 3);
        let guard = session.offer_guard();
        assert_eq!(session.room(), 2);
        drop(guard);
        drop(second);
        assert_eq!(session.room(), 0);
    }

    #[tokio::test]
    async fn a_worker_waits_once() {
        let (id, agent) = (WorkerId(Uuid::nil()), "a".to_owned());
        let worker = RemoteWorker { id, agent, agent_revision: 1, conversation: None, name: None };
        let session = Arc::new(WorkerSession::new(worker, [0; 32], None));
        let first = session.poll(2);
        let long = Duration::from_secs(600);
        let mut waiting = Box::pin(first.offers(long, || false));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let second = session.poll(3);
        assert!(waiting.await.is_empty(), "the newer one has its place");
        assert!(futures_util::poll!(Box::pin(second.offers(long, || false))).is_pending());
        let listening = session.listen();
        assert!(!session.is_heard_anew(listening));
        session.listen();
        assert!(session.is_heard_anew(listening));
    }
}
