//! Who waits for a turn's events in this process.
//!
//! Owns that interest, and wakes whoever has it. As with the rest of the doorbell none of it is needed: the poller looks for
//! everybody who waits (I13).
//!
//! Order for a waiter, always: register interest, then look, then wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{recent_events::RecentEvents, rings::Rings};
use crate::{
    id::TurnId,
    store::records::page::{Anchor, EventPage},
};

/// Who waits for which turn's events.
#[derive(Debug)]
pub struct Subscriptions {
    rings: Arc<Rings>,
    tails: Mutex<HashMap<TurnId, Tailed>>,
}

#[derive(Debug)]
struct Tailed {
    /// Where each reader stands while it waits.
    places: Vec<Arc<Mutex<Option<Cursor>>>>,
    /// When something last happened.
    news: watch::Sender<Instant>,
    recent: Arc<RecentEvents>,
}

/// Where a reader of a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The `seq` of the newest event that it has.
    pub seq: i32,
    /// That event.
    pub anchor: Anchor,
}

impl Subscriptions {
    pub(in crate::store) fn new(rings: Arc<Rings>) -> Self {
        Subscriptions { rings, tails: Mutex::default() }
    }

    /// Registers interest in a turn's events.
    pub fn subscribe(self: &Arc<Self>, turn: TurnId) -> Subscription {
        let mut tails = lock(&self.tails);
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

    /// Events of these turns were committed: wakes local readers and rings the others.
    pub fn events_committed(&self, turns: impl IntoIterator<Item = TurnId> + Clone) {
        self.wake(turns.clone());
        self.events_elsewhere(turns);
    }

    /// The same for readers elsewhere only.
    pub(in crate::store) fn events_elsewhere(&self, turns: impl IntoIterator<Item = TurnId>) {
        self.rings.add(|ring| ring.turns.extend(turns.into_iter().map(|turn| turn.0)));
    }

    /// And for local readers only, of a commit by a statement that `began` then: `page` is what follows
    /// `cursor`, for them to take. `None`: they are to read.
    pub(in crate::store) fn events_here(
        &self,
        turn: TurnId,
        began: Instant,
        cursor: i32,
        page: impl FnOnce() -> Option<EventPage>,
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

    /// Where readers stand that wait now; each place once.
    pub(in crate::store) fn waiting(&self) -> Vec<(TurnId, Cursor)> {
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

    /// Wakes all readers.
    pub(super) fn wake_all(&self) {
        for tailed in lock(&self.tails).values() {
            tailed.news.send_replace(Instant::now());
        }
    }

    /// Wakes the readers of these.
    pub(super) fn wake(&self, turns: impl IntoIterator<Item = TurnId>) {
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
pub struct Subscription {
    news: watch::Receiver<Instant>,
    place: Arc<Mutex<Option<Cursor>>>,
    recent: Arc<RecentEvents>,
    /// What there is to see was there by then.
    due: Instant,
    turn: TurnId,
    all: Arc<Subscriptions>,
}

impl Subscription {
    /// Marks everything so far as seen. Call it before each look.
    pub fn look(&mut self) {
        self.due = self.due.max(*self.news.borrow_and_update());
    }

    /// Until something happened since the last [`Subscription::look`], or `at_most` has passed. For a reader
    /// that says where it stands the poller looks meanwhile.
    pub async fn news(&mut self, at_most: Duration, place: Option<Cursor>) {
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
    pub(in crate::store) fn recent(&self) -> &RecentEvents {
        &self.recent
    }

    /// Whether nobody else here follows the turn.
    pub(in crate::store) fn is_alone(&self) -> bool {
        lock(&self.all.tails).get(&self.turn).is_none_or(|tailed| tailed.places.len() < 2)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut tails = lock(&self.all.tails);
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
