//! Subscriptions to turns' events in this process.
//!
//! Owns the subscriptions, and wakes them. All of this is optional: the poller checks for every waiting reader (I13).
//!
//! A waiter always subscribes first, then reads, then waits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{recent_events::RecentEvents, rings::Rings};
use crate::{
    id::TurnId,
    store::records::page::{Anchor, LogPage},
};

/// Subscriptions by turn.
#[derive(Debug)]
pub struct Subscriptions {
    rings: Arc<Rings>,
    tails: Mutex<HashMap<TurnId, Tailed>>,
}

#[derive(Debug)]
struct Tailed {
    /// The cursor of each reader while it waits.
    places: Vec<Arc<Mutex<Option<Cursor>>>>,
    /// The time of the last notification.
    news: watch::Sender<Instant>,
    recent: Arc<RecentEvents>,
}

/// A reader's position in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// `seq` of the newest event that the reader has.
    pub seq: i32,
    /// That event's identity.
    pub anchor: Anchor,
}

impl Subscriptions {
    pub(in crate::store) fn new(rings: Arc<Rings>) -> Self {
        Subscriptions { rings, tails: Mutex::default() }
    }

    /// Subscribes to a turn's events.
    pub fn subscribe(self: &Arc<Self>, turn: TurnId) -> Subscription {
        let mut tails = self.tails.lock();
        let now = Instant::now();
        let tailed = tails.entry(turn).or_insert_with(|| Tailed {
            places: Vec::with_capacity(1),
            news: watch::Sender::new(now),
            recent: Arc::default(),
        });
        let place = Arc::default();
        tailed.places.push(Arc::clone(&place));
        Subscription {
            news: tailed.news.subscribe(),
            place,
            recent: tailed.recent.clone(),
            due: now,
            turn,
            all: self.clone(),
        }
    }

    /// Notes that events of these turns were committed: wakes local readers and rings the others.
    pub fn events_committed(&self, turns: impl IntoIterator<Item = TurnId> + Clone) {
        self.wake(turns.clone());
        self.events_elsewhere(turns);
    }

    /// As [`Subscriptions::events_committed`], for readers at other replicas only.
    pub(in crate::store) fn events_elsewhere(&self, turns: impl IntoIterator<Item = TurnId>) {
        self.rings.add(|ring| ring.turns.extend(turns.into_iter().map(|turn| turn.0)));
    }

    /// As [`Subscriptions::events_committed`], for local readers of one turn only. The events after `cursor` were
    /// committed by a statement that `began` then; `page` holds them, so that readers need no query. `None`: readers
    /// query.
    pub(in crate::store) fn events_here(
        &self,
        turn: TurnId,
        began: Instant,
        cursor: i32,
        page: impl FnOnce() -> Option<LogPage>,
    ) {
        let tails = self.tails.lock();
        let Some(tailed) = tails.get(&turn) else { return };
        let Some(page) = page() else {
            tailed.news.send_replace(Instant::now());
            return;
        };
        let is_awaited = tailed.places.iter().any(|place| place.lock().is_some());
        tailed.recent.put(began, cursor, page, is_awaited);
        // A reader woken since `began` for something else must still query.
        tailed.news.send_modify(|at| *at = began.max(*at));
    }

    /// The cursors of all waiting readers, without duplicates.
    pub(in crate::store) fn waiting(&self) -> Vec<(TurnId, Cursor)> {
        let mut waiting = Vec::new();
        for (&turn, tailed) in self.tails.lock().iter() {
            let first = waiting.len();
            for place in tailed.places.iter().filter_map(|place| *place.lock()) {
                if !waiting[first..].contains(&(turn, place)) {
                    waiting.push((turn, place));
                }
            }
        }
        waiting
    }

    /// Wakes a turn's readers and clears their cursors, so that the poller does not check again for a reader whose
    /// client is slow.
    pub(in crate::store) fn call(&self, turn: TurnId) {
        if let Some(tailed) = self.tails.lock().get(&turn) {
            tailed.news.send_replace(Instant::now());
            tailed.places.iter().for_each(|place| *place.lock() = None);
        }
    }

    /// Wakes all readers.
    pub(super) fn wake_all(&self) {
        for tailed in self.tails.lock().values() {
            tailed.news.send_replace(Instant::now());
        }
    }

    /// Wakes the readers of these turns.
    pub(super) fn wake(&self, turns: impl IntoIterator<Item = TurnId>) {
        let tails = self.tails.lock();
        for turn in turns {
            if let Some(tailed) = tails.get(&turn) {
                tailed.news.send_replace(Instant::now());
            }
        }
    }
}

/// One subscription to one turn; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    news: watch::Receiver<Instant>,
    place: Arc<Mutex<Option<Cursor>>>,
    recent: Arc<RecentEvents>,
    /// A snapshot that began at this time or later shows everything that the reader was notified of.
    due: Instant,
    turn: TurnId,
    all: Arc<Subscriptions>,
}

impl Subscription {
    /// Marks all notifications so far as seen. Call before each read.
    pub fn look(&mut self) {
        self.due = self.due.max(*self.news.borrow_and_update());
    }

    /// Waits for a notification since the last [`Subscription::look`], or for `at_most`. With a `place` the poller
    /// checks for this reader meanwhile.
    pub async fn news(&mut self, at_most: Duration, place: Option<Cursor>) {
        *self.place.lock() = place;
        // The sender lives as long as this subscription.
        if tokio::time::timeout(at_most, self.news.changed()).await.is_err() {
            self.due = Instant::now();
        }
        *self.place.lock() = None;
    }

    /// The turn.
    pub(in crate::store) fn turn(&self) -> TurnId {
        self.turn
    }

    /// A read has to begin at this time or later.
    pub(in crate::store) fn due(&self) -> Instant {
        self.due
    }

    /// The cached events of the turn.
    pub(in crate::store) fn recent(&self) -> &RecentEvents {
        &self.recent
    }

    /// Whether this is the only subscription to the turn.
    pub(in crate::store) fn is_alone(&self) -> bool {
        self.all.tails.lock().get(&self.turn).is_none_or(|tailed| tailed.places.len() < 2)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut tails = self.all.tails.lock();
        if let Some(tailed) = tails.get_mut(&self.turn) {
            tailed.places.retain(|place| !Arc::ptr_eq(place, &self.place));
            if tailed.places.is_empty() {
                tails.remove(&self.turn);
            }
        }
    }
}
