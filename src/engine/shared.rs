//! State shared by the passes: the store, the host, and flags that one pass sets for another.

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

/// State shared by the passes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) store: Store,
    /// The workers and turns of this replica.
    pub(super) host: Host,
    /// Where remote workers' calls meet this replica.
    pub(super) rendezvous: Arc<Rendezvous>,
    /// Spawns and stops tasks.
    pub(super) supervisor: Supervisor,
    /// This replica's own URL.
    pub(super) url: Arc<str>,
    /// After this time without Postgres the workers are ended.
    pub(super) postgres_away_max: Duration,
    /// How long turns are kept.
    pub(super) retain: Duration,
    /// How many turns may be queued.
    pub(super) queue_max: u32,
    /// Set by presence, cleared by reap: a replica was lost within the last minute.
    pub(super) recent_loss: Arc<AtomicBool>,
    /// Set by presence: registered, and the last beat was answered.
    pub(super) is_present: Arc<AtomicBool>,
    /// Whether a comparison is under way (see `reconcile`).
    pub(super) is_reconciling: Arc<AtomicBool>,
    /// Broken beat connections counted at the start of the last completed comparison.
    pub(super) compared_breaks: Arc<AtomicU64>,
}

impl Engine {
    /// The workers and turns of this replica.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether this replica may claim: it is registered and beats.
    pub(super) fn is_present(&self) -> bool {
        self.is_present.load(Ordering::Relaxed)
    }

    /// Whether this replica may claim turns that may need a new worker: nothing is short. A turn claimed during a
    /// shortage would fail here although another replica could run it.
    pub(super) fn can_start(&self) -> bool {
        self.is_present() && descriptors::shortage().is_none()
    }

    /// Sets whether this replica may claim, and passes it on to remote workers.
    pub(super) fn set_present(&self, is_present: bool) {
        let was_present = self.is_present.swap(is_present, Ordering::Relaxed);
        self.open_or_shut();
        if is_present && !was_present {
            self.store.wake().queue.look();
        }
    }

    /// Tells remote workers whether this replica takes turns.
    pub(super) fn open_or_shut(&self) {
        self.rendezvous.set_takes_turns(self.is_present() && !self.supervisor.soft().is_cancelled());
    }

    /// Gives back a claimed turn that there is no slot for. If that fails, `settle` gives it back later.
    pub(super) async fn give_back(&self, turn: TurnId, epoch: i32) {
        match self.store.release(turn, epoch, true).await {
            Ok(is_released) => {
                tracing::info!(
                    turn_id = %turn, is_released,
                    "a turn was claimed without a free slot; given back"
                );
            }
            Err(why) => {
                warn_of!(
                    why, turn_id = %turn,
                    "a turn was claimed without a free slot and could not be given back yet"
                )
            }
        }
    }
}
