//! The doorbell's inside: who waits for what in this process, and what is still to be rung.
//!
//! Owns interest and pending rings. A ring never carries a message, only "look at these": whoever
//! is woken reads the tables. It is always correct to wake too often, and never needed: whoever waits
//! looks by itself now and then, or has the lookout look (I13).
//!
//! Order for a waiter, always: register interest, then look, then wait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    conversation_subscriptions::Threads,
    queue_hints::{Queue, first},
    recent_events::Recent,
    ring::Ring,
};
use crate::{
    config::Doorbell,
    id::TurnId,
    store::tables::pages::{Anchor, Page},
};

/// Between two looks without a ring; while the doorbell is heard one of so many is taken.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_TO_ONE: u32 = 6;

/// Who waits, and what is to be rung.
#[derive(Debug)]
pub struct Wake {
    is_on: bool,
    /// Marks our own rings, which local waiters need not hear again.
    sender: Uuid,
    tails: Mutex<HashMap<TurnId, Tailed>>,
    pending: Mutex<Ring>,
    pub(in crate::store) rung: Notify,
    pub(in crate::store) queue: Queue,
    pub(in crate::store) threads: Threads,
    orders: Notify,
    closing: Notify,
    /// The key of the session lock that the listener connection holds.
    lock_key: AtomicI64,
    /// Microseconds of the last probe from ring to hearing; 0 before the first.
    round_trip_us: AtomicI64,
    peers: AtomicUsize,
}

#[derive(Debug)]
struct Tailed {
    /// Where each reader stands while it waits.
    places: Vec<Arc<Mutex<Option<Place>>>>,
    /// When something last happened.
    news: watch::Sender<Instant>,
    recent: Arc<Recent>,
}

/// Where a reader of a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The `seq` of the newest event that it has.
    pub seq: i32,
    /// That event.
    pub anchor: Anchor,
}

impl Wake {
    pub(in crate::store) fn new(doorbell: Doorbell, sender: Uuid) -> Self {
        Wake {
            is_on: doorbell == Doorbell::On,
            sender,
            tails: Mutex::default(),
            pending: Mutex::default(),
            rung: Notify::new(),
            queue: Queue::default(),
            threads: Threads::default(),
            orders: Notify::new(),
            closing: Notify::new(),
            lock_key: AtomicI64::new(0),
            round_trip_us: AtomicI64::new(0),
            peers: AtomicUsize::new(0),
        }
    }

    /// Whether NOTIFY is used at all.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Registers interest in a turn's events.
    pub fn tail(self: &Arc<Self>, turn: TurnId) -> Interest {
        let mut tails = lock(&self.tails);
        let now = Instant::now();
        let tailed = tails.entry(turn).or_insert_with(|| Tailed {
            places: Vec::with_capacity(1),
            news: watch::Sender::new(now),
            recent: Arc::default(),
        });
        let place = Arc::default();
        tailed.places.push(Arc::clone(&place));
        Interest {
            news: tailed.news.subscribe(),
            place,
            recent: tailed.recent.clone(),
            due: now,
            turn,
            wake: self.clone(),
        }
    }

    /// Events of these turns were committed: wakes local readers and rings the others.
    pub fn events_committed(&self, turns: impl IntoIterator<Item = TurnId> + Clone) {
        self.wake_tails(turns.clone());
        self.events_elsewhere(turns);
    }

    /// The same for readers elsewhere only.
    pub(in crate::store) fn events_elsewhere(&self, turns: impl IntoIterator<Item = TurnId>) {
        self.ring(|ring| ring.turns.extend(turns.into_iter().map(|turn| turn.0)));
    }

    /// And for local readers only, of a commit by a statement that `began` then: `page` is what follows
    /// `cursor`, for them to take. `None`: they are to read.
    pub(in crate::store) fn events_here(
        &self,
        turn: TurnId,
        began: Instant,
        cursor: i32,
        page: impl FnOnce() -> Option<Page>,
    ) {
        let tails = lock(&self.tails);
        let Some(tailed) = tails.get(&turn) else { return };
        let Some(page) = page() else {
            tailed.news.send_replace(Instant::now());
            return;
        };
        let is_awaited = tailed.places.iter().any(|place| lock(place).is_some());
        tailed.recent.put(began, cursor, page, is_awaited);
        // Whoever was rung since then for something else is still to read.
        tailed.news.send_modify(|at| *at = began.max(*at));
    }

    /// Orders wait for some holder: wakes the local one and rings the others.
    pub fn orders_left(&self) {
        self.orders.notify_one();
        self.ring(|ring| ring.orders = true);
    }

    /// Some holder is gone: wakes the local close pass, which finds what it had accepted and did not live to ring
    /// for, and rings the others. It may have left orders too.
    pub fn holder_gone(&self) {
        self.queue_moved();
        self.orders_left();
        self.closing.notify_one();
        self.ring(|ring| ring.closing = true);
    }

    /// How often to look without a ring: each second while the doorbell is not heard, else now and then, since a ring
    /// can be lost without a trace.
    pub fn look_every(&self) -> Duration {
        if self.round_trip().is_none() { LOOK_EVERY } else { LOOK_EVERY * LOOKS_TO_ONE }
    }

    /// Until somebody who looked `last` at that time should look all the same ([`Wake::look_every`]).
    pub async fn look_due(&self, last: Instant) {
        while let Some(left) = self.look_every().checked_sub(last.elapsed()).filter(|left| !left.is_zero()) {
            sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// Until there may be orders.
    pub async fn orders(&self) {
        self.orders.notified().await;
    }

    /// Until there may be something to close.
    pub async fn closing(&self) {
        self.closing.notified().await;
    }

    /// Wakes everybody: what was rung meanwhile is unknown.
    pub fn look_everywhere(&self) {
        for tailed in lock(&self.tails).values() {
            tailed.news.send_replace(Instant::now());
        }
        self.queue.forget();
        self.orders.notify_one();
        self.closing.notify_one();
    }

    /// How long the last probe took from ring to hearing.
    pub fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us.unsigned_abs()))
    }

    pub(in crate::store) fn set_round_trip(&self, took: Option<Duration>) {
        let us = took.map_or(0, |t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX).max(1));
        self.round_trip_us.store(us, Ordering::Relaxed);
    }

    /// How many other replicas there are; many replicas ring less often.
    pub fn set_peers(&self, peers: usize) {
        self.peers.store(peers, Ordering::Relaxed);
    }

    /// How many replicas there are, as far as is known here.
    pub fn replicas(&self) -> usize {
        self.peers() + 1
    }

    pub(in crate::store) fn peers(&self) -> usize {
        self.peers.load(Ordering::Relaxed)
    }

    /// The key of the session lock that says "this process lives"; 0 before the first.
    pub fn lock_key(&self) -> i64 {
        self.lock_key.load(Ordering::Acquire)
    }

    pub(in crate::store) fn set_lock_key(&self, key: i64) {
        self.lock_key.store(key, Ordering::Release);
    }

    pub(in crate::store) fn sender(&self) -> Uuid {
        self.sender
    }

    pub(in crate::store) fn hear(&self, sender: Uuid, ring: &Ring) {
        self.threads.hear(sender, ring);
        self.wake_tails(ring.turns.iter().map(|&turn| TurnId(turn)));
        if let Some(turn) = ring.first_queued {
            self.queue.grew(TurnId(turn));
        }
        if ring.queue {
            self.queue.moved();
        }
        self.queue.kept(ring.kept.iter().map(|&(_, conversation)| conversation));
        if ring.orders {
            self.orders.notify_one();
        }
        if ring.closing {
            self.closing.notify_one();
        }
    }

    pub(in crate::store) fn ring(&self, what: impl FnOnce(&mut Ring)) {
        if self.is_on {
            what(&mut lock(&self.pending));
            self.rung.notify_one();
        }
    }

    /// Gives back what could not be rung, to be rung with what has come since.
    pub(in crate::store) fn put_back(&self, undelivered: Ring) {
        self.ring(|ring| {
            ring.turns.extend(undelivered.turns);
            ring.first_queued = first(ring.first_queued, undelivered.first_queued);
            ring.queue |= undelivered.queue;
            ring.kept.extend(undelivered.kept);
            ring.orders |= undelivered.orders;
            ring.follows |= undelivered.follows;
            ring.closing |= undelivered.closing;
            ring.probe = ring.probe.or(undelivered.probe);
        });
    }

    pub(in crate::store) fn take_pending(&self) -> Ring {
        std::mem::take(&mut *lock(&self.pending))
    }

    /// Where readers stand that wait now; each place once.
    pub(in crate::store) fn waiting(&self) -> Vec<(TurnId, Place)> {
        let mut waiting = Vec::new();
        for (&turn, tailed) in lock(&self.tails).iter() {
            let first = waiting.len();
            for place in tailed.places.iter().filter_map(|place| *lock(place)) {
                if !waiting[first..].contains(&(turn, place)) {
                    waiting.push((turn, place));
                }
            }
        }
        waiting
    }

    /// Wakes all readers of a turn, and waits for none of them: one that does not come to look, since its
    /// client is slow, is not to be looked for again.
    pub(in crate::store) fn call(&self, turn: TurnId) {
        if let Some(tailed) = lock(&self.tails).get(&turn) {
            tailed.news.send_replace(Instant::now());
            tailed.places.iter().for_each(|place| *lock(place) = None);
        }
    }

    fn wake_tails(&self, turns: impl IntoIterator<Item = TurnId>) {
        let tails = lock(&self.tails);
        for turn in turns {
            if let Some(tailed) = tails.get(&turn) {
                tailed.news.send_replace(Instant::now());
            }
        }
    }
}

/// One reader's interest in one turn; ends when dropped.
#[derive(Debug)]
pub struct Interest {
    news: watch::Receiver<Instant>,
    place: Arc<Mutex<Option<Place>>>,
    recent: Arc<Recent>,
    /// What there is to see was there by then.
    due: Instant,
    turn: TurnId,
    wake: Arc<Wake>,
}

impl Interest {
    /// Marks everything so far as seen. Call it before each look.
    pub fn look(&mut self) {
        self.due = self.due.max(*self.news.borrow_and_update());
    }

    /// Until something happened since the last [`Interest::look`], or `at_most` has passed. For a reader
    /// that says where it stands the lookout looks meanwhile.
    pub async fn news(&mut self, at_most: Duration, place: Option<Place>) {
        *lock(&self.place) = place;
        // The sender lives as long as this interest does.
        if tokio::time::timeout(at_most, self.news.changed()).await.is_err() {
            self.due = Instant::now();
        }
        *lock(&self.place) = None;
    }

    /// Whose events.
    pub(in crate::store) fn turn(&self) -> TurnId {
        self.turn
    }

    /// A look that began after this moment shows all that the last one was for.
    pub(in crate::store) fn due(&self) -> Instant {
        self.due
    }

    /// What is known here of the turn's log.
    pub(in crate::store) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Whether nobody else here follows the turn.
    pub(in crate::store) fn is_alone(&self) -> bool {
        lock(&self.wake.tails).get(&self.turn).is_none_or(|tailed| tailed.places.len() < 2)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut tails = lock(&self.wake.tails);
        if let Some(tailed) = tails.get_mut(&self.turn) {
            tailed.places.retain(|place| !Arc::ptr_eq(place, &self.place));
            if tailed.places.is_empty() {
                tails.remove(&self.turn);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
