//! Rings that wait to be sent, and whether the doorbell works.
//!
//! A ring only says where to look; the receiver reads the tables. A superfluous ring is harmless, and a missing one
//! only delays: every waiter polls, or the poller polls for it (I13).

use std::{
    sync::atomic::{AtomicI64, AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::ring::{Ring, first};
use crate::config::Doorbell;

/// Fallback poll interval: 1 s without a doorbell, 6 × that with one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_TO_ONE: u32 = 6;

/// The rings to send.
#[derive(Debug)]
pub struct Rings {
    is_on: bool,
    /// Id of this sender, to recognise our own rings: local waiters were woken already.
    sender: Uuid,
    pending: Mutex<Ring>,
    added: Notify,
    /// Round trip of the last probe in microseconds; 0 while no probe has come back.
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

    /// Whether the doorbell is configured on.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    pub(in crate::store) fn sender(&self) -> Uuid {
        self.sender
    }

    /// Adds to the next ring.
    pub(in crate::store) fn add(&self, what: impl FnOnce(&mut Ring)) {
        if self.is_on {
            what(&mut self.pending.lock());
            self.added.notify_one();
        }
    }

    /// Waits until there is something to send.
    pub(in crate::store) async fn added(&self) {
        self.added.notified().await;
    }

    pub(in crate::store) fn take(&self) -> Ring {
        std::mem::take(&mut *self.pending.lock())
    }

    /// Puts back a ring that could not be sent; it merges with newer ones.
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

    /// Round trip of the last probe; `None` while the doorbell does not work.
    pub fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us.unsigned_abs()))
    }

    pub(in crate::store) fn set_round_trip(&self, took: Option<Duration>) {
        let us = took.map_or(0, |t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX).max(1));
        self.round_trip_us.store(us, Ordering::Relaxed);
    }

    /// Interval of the fallback polls: 1 s while the doorbell does not work, else 6 s, since a ring can be lost without
    /// an error.
    pub fn look_every(&self) -> Duration {
        if self.round_trip().is_none() { LOOK_EVERY } else { LOOK_EVERY * LOOKS_TO_ONE }
    }

    /// Waits until the next fallback poll is due after one at `last` ([`Rings::look_every`]).
    pub async fn look_due(&self, last: Instant) {
        while let Some(left) = self.look_every().checked_sub(last.elapsed()).filter(|left| !left.is_zero()) {
            sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// Sets the number of other replicas. The more replicas, the fewer rings per second.
    pub fn set_peers(&self, peers: usize) {
        self.peers.store(peers, Ordering::Relaxed);
    }

    /// The number of replicas, as far as this process knows.
    pub fn replicas(&self) -> usize {
        self.peers.load(Ordering::Relaxed) + 1
    }
}
