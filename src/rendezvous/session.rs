//! The session of a remote worker at this replica.
//!
//! Owns the worker's poll, the turns that are reserved for the worker, the offers that wait for its next poll, and its
//! liveness. Refuses a second poll at a time: a newer poll ends the older one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::liveness::Liveness;
use crate::{
    id::{ConversationId, TurnId},
    store::remote_workers::RemoteWorker,
};

/// A remote worker that is registered at this replica.
#[derive(Debug)]
pub struct WorkerSession {
    /// The worker's record.
    pub worker: RemoteWorker,
    /// SHA-256 of the token that the worker registered with.
    pub token_hash: [u8; 32],
    expires_at: Option<DateTime<Utc>>,
    /// Liveness of the worker.
    pub liveness: Arc<Liveness>,
    /// The number of the newest poll, and how many turns that poll asks for; 0 when no poll is open.
    polled: Mutex<(u64, u32)>,
    /// The number of the newest beat that listens.
    listened: AtomicU64,
    /// Turns that were claimed for the worker and are not delivered yet.
    promised: AtomicU32,
    offers: Mutex<Vec<TurnOffer>>,
    is_leaving: AtomicBool,
    is_stopped: AtomicBool,
    is_refused: AtomicBool,
    news: Notify,
}

/// A turn that the worker may take.
#[derive(Debug)]
pub struct TurnOffer {
    /// The turn.
    pub turn: TurnId,
    /// The turn's conversation.
    pub conversation: ConversationId,
    /// The epoch of the attempt.
    pub epoch: i32,
    /// The turn's number within its conversation.
    pub ordinal: i64,
    /// The secret that authenticates the worker's requests for this turn, until the last word.
    pub token: String,
    /// The native protocol's `turn` message, as JSON text.
    pub message: String,
    /// Holds the reservation until the offer is delivered or dropped.
    pub guard: OfferGuard,
}

/// A reservation: one turn claimed for a worker, counted against the worker's poll until dropped.
#[derive(Debug)]
pub struct OfferGuard(Arc<WorkerSession>);

impl OfferGuard {
    /// The session that the turn is reserved for.
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

    /// Marks the worker as leaving: it gets no more turns, and its open poll ends.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.wake();
    }

    /// Marks the worker as stopped by an operator.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.leave();
    }

    /// Marks the worker's token as revoked: its open poll and beat end.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Release);
        self.leave();
    }

    /// Whether the worker's token is valid at `now`, a time of the database's clock.
    pub fn is_let_in(&self, now: DateTime<Utc>) -> bool {
        !self.is_refused.load(Ordering::Acquire) && self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether an operator has stopped the worker.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Whether the worker takes no more turns.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// How many more turns the open poll has capacity for, without those reserved already.
    pub fn room(&self) -> u32 {
        if self.is_leaving() {
            return 0;
        }
        let (_, room) = *self.polled.lock();
        room.saturating_sub(self.promised.load(Ordering::Acquire))
    }

    /// Reserves one turn for the worker.
    pub fn offer_guard(self: &Arc<Self>) -> OfferGuard {
        self.promised.fetch_add(1, Ordering::AcqRel);
        OfferGuard(self.clone())
    }

    /// Queues an offer for the worker's next poll, and wakes an open one.
    pub fn offer(&self, offer: TurnOffer) {
        self.offers.lock().push(offer);
        self.wake();
    }

    /// Withdraws an offer; false if the worker may have received it.
    pub fn withdraw(&self, turn: TurnId, epoch: i32) -> bool {
        let mut offers = self.offers.lock();
        let before = offers.len();
        offers.retain(|offer| (offer.turn, offer.epoch) != (turn, epoch));
        offers.len() < before
    }

    /// Opens a poll for up to `room` turns. Turns can be reserved for the worker while the poll is open. An older poll
    /// of the same worker ends: more than one would have no bound.
    pub fn poll(self: &Arc<Self>, room: u32) -> Polling {
        let number = {
            let mut polled = self.polled.lock();
            *polled = (polled.0 + 1, room);
            polled.0
        };
        self.wake();
        Polling { session: self.clone(), number }
    }

    /// Registers a beat that listens for orders; its number. An older beat stops listening, as with
    /// [`WorkerSession::poll`].
    pub fn listen(&self) -> u64 {
        let number = self.listened.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        number
    }

    /// Whether a newer beat than `number` listens.
    pub fn is_heard_anew(&self, number: u64) -> bool {
        self.listened.load(Ordering::Acquire) != number
    }

    /// Wakes the open poll and the listening beat, so that they look again.
    pub fn wake(&self) {
        self.news.notify_waiters();
    }

    /// Calls `look` now and after each wake-up until it returns a value; `None` at `until`. Cancel-safe.
    pub async fn look_until<T>(&self, until: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Register before the look, or a wake-up between the two is lost.
            news.as_mut().enable();
            if let Some(seen) = look() {
                return Some(seen);
            }
            if timeout_at(until, news).await.is_err() {
                return None;
            }
        }
    }
}

/// An open poll. A drop closes the poll, unless a newer one is open: the end of a broken request may be noticed only
/// after the next request has arrived.
#[derive(Debug)]
pub struct Polling {
    session: Arc<WorkerSession>,
    number: u64,
}

impl Polling {
    /// Waits for offers, at least one. Empty after `wait`, or when the worker leaves, a newer poll opens or
    /// `is_over()`.
    pub async fn offers(&self, wait: Duration, is_over: impl Fn() -> bool) -> Vec<TurnOffer> {
        let session = &self.session;
        let look = || {
            if session.polled.lock().0 != self.number {
                // Any offers now belong to the newer poll.
                return Some(Vec::new());
            }
            let offers = std::mem::take(&mut *session.offers.lock());
            (!offers.is_empty() || session.is_leaving() || is_over()).then_some(offers)
        };
        session.look_until(Instant::now() + wait, look).await.unwrap_or_default()
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        let mut polled = self.session.polled.lock();
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
