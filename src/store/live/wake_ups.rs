//! All wake-ups of this process: who waits for what.
//!
//! A waiter always subscribes first, then reads, then waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    conversation_subscriptions::ConversationSubscriptions, queue_hints::QueueHints, ring::Ring, rings::Rings,
    subscriptions::Subscriptions,
};
use crate::{config::Doorbell, id::TurnId};

/// Subscriptions of this process, and the rings to send for those of other replicas.
#[derive(Debug)]
pub struct WakeUps {
    /// Rings to send.
    pub rings: Arc<Rings>,
    /// Subscriptions to turns' events.
    pub turns: Arc<Subscriptions>,
    /// Subscriptions to conversations' next turns.
    pub conversations: Arc<ConversationSubscriptions>,
    /// Hints for dispatch.
    pub queue: QueueHints,
    orders: Notify,
    closing: Notify,
    /// The key of the session lock that the listener's connection holds.
    lock_key: AtomicI64,
}

impl WakeUps {
    pub(in crate::store) fn new(doorbell: Doorbell, sender: Uuid) -> Self {
        let rings = Arc::new(Rings::new(doorbell, sender));
        WakeUps {
            turns: Arc::new(Subscriptions::new(rings.clone())),
            conversations: Arc::new(ConversationSubscriptions::new(rings.clone())),
            queue: QueueHints::new(rings.clone()),
            rings,
            orders: Notify::new(),
            closing: Notify::new(),
            lock_key: AtomicI64::new(0),
        }
    }

    /// Orders were stored for some holder: wakes the local reader of orders and rings the others.
    pub fn orders_left(&self) {
        self.orders.notify_one();
        self.rings.add(|ring| ring.orders = true);
    }

    /// A holder is gone: wakes the local close pass and dispatch, and rings the others. The holder may have accepted
    /// turns or stored orders without ringing.
    pub fn holder_gone(&self) {
        self.queue.moved();
        self.orders_left();
        self.closing.notify_one();
        self.rings.add(|ring| ring.closing = true);
    }

    /// Waits until there may be orders.
    pub async fn orders(&self) {
        self.orders.notified().await;
    }

    /// Waits until there may be turns to close.
    pub async fn closing(&self) {
        self.closing.notified().await;
    }

    /// Wakes every waiter: rings may have been missed.
    pub fn look_everywhere(&self) {
        self.turns.wake_all();
        self.queue.forget();
        self.orders.notify_one();
        self.closing.notify_one();
    }

    /// The key of the session lock that proves that this process lives; 0 before the first connect.
    pub fn lock_key(&self) -> i64 {
        self.lock_key.load(Ordering::Acquire)
    }

    pub(in crate::store) fn set_lock_key(&self, key: i64) {
        self.lock_key.store(key, Ordering::Release);
    }

    /// Handles a ring of another replica.
    pub(in crate::store) fn hear(&self, sender: Uuid, ring: &Ring) {
        self.conversations.hear(sender, ring);
        self.turns.wake(ring.turns.iter().map(|&turn| TurnId(turn)));
        if let Some(turn) = ring.first_queued {
            self.queue.note_grown(TurnId(turn));
        }
        if ring.queue {
            self.queue.look_from_front();
        }
        self.queue.note_kept(ring.kept.iter().map(|&(_, conversation)| conversation));
        if ring.orders {
            self.orders.notify_one();
        }
        if ring.closing {
            self.closing.notify_one();
        }
    }

    /// Adds a probe to the next ring, to measure the round trip of the doorbell.
    pub(in crate::store) fn ring_probe(&self, started: Instant, now: Instant) {
        let nonce = i64::try_from(now.duration_since(started).as_micros()).unwrap_or(i64::MAX);
        let follows = self.conversations.say();
        self.rings.add(|ring| (ring.probe, ring.follows) = (Some(nonce), follows));
    }
}
