//! Who waits for what in this process.
//!
//! Order for a waiter, always: register interest, then look, then wait.

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

/// Everybody who waits, and what is to be rung for those who wait elsewhere.
#[derive(Debug)]
pub struct WakeUps {
    /// What is to be rung.
    pub rings: Arc<Rings>,
    /// Who waits for a turn's events.
    pub turns: Arc<Subscriptions>,
    /// Who waits for a conversation's next turn.
    pub conversations: Arc<ConversationSubscriptions>,
    /// Why dispatch is to look at the queue.
    pub queue: QueueHints,
    orders: Notify,
    closing: Notify,
    /// The key of the session lock that the listener connection holds.
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

    /// Orders wait for some holder: wakes the local one and rings the others.
    pub fn orders_left(&self) {
        self.orders.notify_one();
        self.rings.add(|ring| ring.orders = true);
    }

    /// Some holder is gone: wakes the local close pass, which finds what it had accepted and did not live to ring
    /// for, and rings the others. It may have left orders too.
    pub fn holder_gone(&self) {
        self.queue.moved();
        self.orders_left();
        self.closing.notify_one();
        self.rings.add(|ring| ring.closing = true);
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
        self.turns.wake_all();
        self.queue.forget();
        self.orders.notify_one();
        self.closing.notify_one();
    }

    /// The key of the session lock that says "this process lives"; 0 before the first.
    pub fn lock_key(&self) -> i64 {
        self.lock_key.load(Ordering::Acquire)
    }

    pub(in crate::store) fn set_lock_key(&self, key: i64) {
        self.lock_key.store(key, Ordering::Release);
    }

    /// Hears what another replica rang.
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

    /// Rings for ourselves, to measure how long it takes to be heard.
    pub(in crate::store) fn ring_probe(&self, started: Instant, now: Instant) {
        let nonce = i64::try_from(now.duration_since(started).as_micros()).unwrap_or(i64::MAX);
        let follows = self.conversations.say();
        self.rings.add(|ring| (ring.probe, ring.follows) = (Some(nonce), follows));
    }
}
