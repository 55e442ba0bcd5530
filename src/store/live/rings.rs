//! Rings that are still to be sent, and whether rings are heard.
//!
//! A ring never carries a message, only "look at these": whoever is woken reads the tables. It is always correct to ring too
//! often, and never needed: whoever waits looks by itself now and then, or has the poller look (I13).

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::ring::{Ring, first};
use crate::config::Doorbell;

/// Fallback poll interval without a doorbell; with one that is heard it is so many times as long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_TO_ONE: u32 = 6;

/// What is to be rung.
#[derive(Debug)]
pub struct Rings {
    is_on: bool,
    /// Marks our own rings, which local waiters need not hear again.
    sender: Uuid,
    pending: Mutex<Ring>,
    added: Notify,
    /// Microseconds of the last probe from ring to hearing; 0 before the first.
    round_trip_us: AtomicI64,
    peers: AtomicUsize,
}

impl Rings {
    pub(in crate::store) fn new(doorbell: Doorbell, sender: Uuid) -> Self {
        Rings {
            is_on: doorbell == Doorbell::On,
            sender,
            pending: Mutex::default(),
            added: Notify::new(),
            round_trip_us: AtomicI64::new(0),
            peers: AtomicUsize::new(0),
        }
    }

    /// Whether NOTIFY is used at all.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    pub(in crate::store) fn sender(&self) -> Uuid {
        self.sender
    }

    /// Adds to what is to be rung next.
    pub(in crate::store) fn add(&self, what: impl FnOnce(&mut Ring)) {
        if self.is_on {
            what(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            self.added.notify_one();
        }
    }

    /// Until there is something to ring.
    pub(in crate::store) async fn added(&self) {
        self.added.notified().await;
    }

    pub(in crate::store) fn take(&self) -> Ring {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives back what could not be rung, to be rung with what has come since.
    pub(in crate::store) fn put_back(&self, undelivered: Ring) {
        self.add(|ring| {
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

    /// How long the last probe took from ring to hearing; `None` while rings are not heard.
    pub fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us.unsigned_abs()))
    }

    pub(in crate::store) fn set_round_trip(&self, took: Option<Duration>) {
        let us = took.map_or(0, |t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX).max(1));
        self.round_trip_us.store(us, Ordering::Relaxed);
    }

    /// How often to look without a ring: each second while the doorbell is not heard, else every 6 s, since a ring can be
    /// lost without a trace.
    pub fn look_every(&self) -> Duration {
        if self.round_trip().is_none() { LOOK_EVERY } else { LOOK_EVERY * LOOKS_TO_ONE }
    }

    /// Until somebody who looked `last` at that time should look all the same ([`Rings::look_every`]).
    pub async fn look_due(&self, last: Instant) {
        while let Some(left) = self.look_every().checked_sub(last.elapsed()).filter(|left| !left.is_zero()) {
            sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// How many other replicas there are; many replicas ring less often.
    pub fn set_peers(&self, peers: usize) {
        self.peers.store(peers, Ordering::Relaxed);
    }

    /// How many replicas there are, as far as is known here.
    pub fn replicas(&self) -> usize {
        self.peers.load(Ordering::Relaxed) + 1
    }
}
