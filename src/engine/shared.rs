//! What the passes share: the store, what runs here, and the few words that one pass leaves for another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    descriptors,
    id::TurnId,
    rendezvous::Rendezvous,
    store::{Store, warn_of},
    task::Supervisor,
    worker::host::Host,
};

/// What the passes share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Postgres.
    pub(super) store: Store,
    /// What this replica runs.
    pub(super) host: Host,
    /// Where remote workers meet this replica.
    pub(super) rendezvous: Arc<Rendezvous>,
    /// Home of tasks.
    pub(super) supervisor: Supervisor,
    /// Where this replica is reached.
    pub(super) url: Arc<str>,
    /// Without Postgres for so long it ends its workers.
    pub(super) postgres_away_max: Duration,
    /// How long turns are kept.
    pub(super) retain: Duration,
    /// How many turns may wait.
    pub(super) queue_max: u32,
    /// Set by presence, taken by reap: somebody was lost within the last minute.
    pub(super) recent_loss: Arc<AtomicBool>,
    /// Set by presence: registered, and the last beat came back.
    pub(super) is_present: Arc<AtomicBool>,
    /// Whether a comparison is under way.
    pub(super) is_reconciling: Arc<AtomicBool>,
    /// How often the beat's connection had broken when the last comparison began that came to its end.
    pub(super) compared_breaks: Arc<AtomicU64>,
}

impl Engine {
    /// What this replica runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether this replica may claim: it has registered, and beats.
    pub(super) fn is_present(&self) -> bool {
        self.is_present.load(Ordering::Relaxed)
    }

    /// Whether this replica may claim what it may have to start a worker for: it lacks nothing besides. What it
    /// claimed without it would fail here, and another replica may have it.
    pub(super) fn can_start(&self) -> bool {
        self.is_present() && descriptors::shortage().is_none()
    }

    /// Whether this replica may claim from now on; remote workers are told.
    pub(super) fn set_present(&self, is_present: bool) {
        let was_present = self.is_present.swap(is_present, Ordering::Relaxed);
        self.open_or_shut();
        if is_present && !was_present {
            self.store.wake().queue.look();
        }
    }

    /// Tells remote workers whether this replica takes on turns.
    pub(super) fn open_or_shut(&self) {
        self.rendezvous.set_takes_turns(self.is_present() && !self.supervisor.soft().is_cancelled());
    }

    /// Gives back a turn that was claimed without a place for it. Where that fails, it is settled later.
    pub(super) async fn give_back(&self, turn: TurnId, epoch: i32) {
        match self.store.release(turn, epoch, true).await {
            Ok(is_released) => {
                tracing::info!(turn_id = %turn, is_released, "claimed without a place for it; given back");
            }
            Err(why) => {
                warn_of!(why, turn_id = %turn, "claimed without a place for it; not given back")
            }
        }
    }
}
