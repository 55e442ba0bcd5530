//! The workers of this replica and its turns under way.
//!
//! Owns every way to reach a turn that runs here: commands from clients, and the two stops (lost: write nothing
//! more; interrupted: a deploy ends the turn). The host holds the work; no request does (I12).

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{deps::Deps, kubernetes::Pods, registry::SlotShare, turn::Fit};
pub use crate::host::Halt;
use crate::{
    agent::Runtime,
    config::Config,
    host::{HostedTurn, OwnWorker, WorkerHost},
    id::{ConversationId, TurnId, WorkerId},
    principal::Principal,
    rendezvous::Rendezvous,
    store::{Store, claim::Warm, commands::Command, group_commit::Writer},
    task::Supervisor,
    telemetry::metrics,
};

/// The workers and turns of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    workers: WorkerHost<Deps>,
}

impl Host {
    /// A host without workers.
    pub fn new(
        store: Store,
        rendezvous: Arc<Rendezvous>,
        writer: Writer,
        supervisor: Supervisor,
        config: &Config,
        pods: Option<Pods>,
    ) -> Self {
        let deps = Deps::new(store, rendezvous, writer, supervisor, config, pods);
        Host { workers: WorkerHost::new(deps, config.workers_max()) }
    }

    /// The processes that serve turns here.
    pub(super) fn workers(&self) -> &WorkerHost<Deps> {
        &self.workers
    }

    pub(super) fn deps(&self) -> &Deps {
        self.workers.owner()
    }

    /// The runtimes this replica hosts.
    pub fn runtimes(&self) -> &'static [Runtime] {
        if self.deps().pods.is_some() {
            &[Runtime::Process, Runtime::Kubernetes]
        } else {
            &[Runtime::Process]
        }
    }

    /// Conversations that have their own worker here. Includes busy workers: the next turn may be claimed as soon
    /// as the last word is written, before the worker is idle again. Shared workers belong to no conversation and
    /// are left out.
    pub fn warm(&self) -> Vec<Warm> {
        self.workers.own_workers(|(&conversation, own)| warm(conversation, own))
    }

    /// The conversation's worker here.
    pub(super) fn warm_of(&self, conversation: ConversationId) -> Option<Warm> {
        self.workers.own_worker(conversation, |own| warm(conversation, own))
    }

    /// Releases a claim that does not run here: from now on no worker here receives the turn. Returns false if a
    /// worker may already have received the turn.
    pub fn release_unless_delivered(&self, turn: TurnId, epoch: i32) -> bool {
        self.deps().running.release_unless_delivered(turn, epoch)
    }

    /// Turns that run here, with their epochs.
    pub fn runs(&self) -> HashMap<TurnId, i32> {
        self.deps().running.epochs()
    }

    /// The time until the next deadline of each turn that runs here.
    pub fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        self.deps().running.time_left()
    }

    /// Passes a command to a turn that runs here. A command that cannot be delivered is read from the database
    /// again later.
    pub fn order(&self, command: Command) {
        self.deps().running.order(command);
    }

    /// Retires a worker: the process ends when its turns have ended. Returns those turns; the caller cancels them.
    pub fn stop_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        self.workers.retire(worker);
        self.deps().running.of_worker(worker)
    }

    /// Stops idle workers of conversations that another replica has taken over: such a worker can never serve
    /// again. `seen` holds the generations the caller compared; a worker of a newer generation is left alone.
    pub fn stop_taken_over(&self, seen: &[(ConversationId, i64)], taken_over: &[ConversationId]) {
        self.workers.stop_where(|conversation, own| {
            own.is_idle
                && taken_over.contains(&conversation)
                && seen.contains(&(conversation, own.fit.generation))
        });
    }

    /// Gives no worker another turn: idle workers end now, busy workers end with their turns.
    pub fn retire_workers(&self) {
        self.workers.retire_all();
    }

    /// Halts every turn here for this reason, and retires every worker.
    pub fn halt_all(&self, why: Halt) {
        self.deps().running.halt_all(why);
        self.retire_workers();
        if why == Halt::Lost {
            // A halted turn ends its own worker, but a shared worker has no turn left to end with.
            self.workers.kill_shared();
        }
    }

    /// Halts one attempt that this replica no longer holds.
    pub fn halt(&self, turn: TurnId, epoch: i32) {
        self.deps().running.halt(turn, epoch, Halt::Lost);
    }

    /// Renews the lifeline of the worker guards and publishes the worker metrics. Without a renewal the guards end
    /// their workers after `postgres_away_max`.
    pub fn renew(&self) {
        self.deps().guards.tell_bounds();
        let census = self.workers.renew();
        let slots = self.workers.slots();
        // Idle workers do not count: an idle worker is stopped as soon as its slot is needed.
        let used = slots.used().saturating_sub(census.idle);
        metrics::bound("workers", used as u64, slots.max() as u64);
        metrics::workers("idle", census.idle);
        metrics::workers("busy", census.busy);
    }

    /// Publishes how full this replica's bounds are.
    pub fn note_bounds(&self) {
        let slots = &self.deps().slots;
        let taken = slots.count().saturating_sub(slots.free());
        metrics::bound("turns", taken as u64, slots.count() as u64);
        self.deps().writer.note_bounds();
    }

    /// The number of worker processes here.
    pub fn lives(&self) -> usize {
        self.workers.count()
    }

    /// Ends at most this many idle workers, the longest idle first, to free what they hold for others.
    pub fn end_idle(&self, most: usize) {
        self.workers.end_idle(most);
    }

    /// Polls the queue if a turn may have waited for a slot and a slot is free.
    pub fn look_if_wanted(&self) {
        self.deps().slots.look_if_wanted();
    }

    /// The principals whose turns must wait because they use their whole share of the slots here.
    pub fn barred(&self) -> Vec<Principal> {
        self.deps().slots.barred()
    }

    /// Takes one slot from the share of the turn's principal; `None` if the share is used up.
    pub fn share(&self, turn: TurnId) -> Option<SlotShare> {
        self.deps().slots.share(turn)
    }

    /// Like [`share`](Self::share) for a turn that is already held: never refused.
    pub fn share_of_held(&self, turn: TurnId) -> Option<SlotShare> {
        self.deps().slots.share_of_held(turn)
    }
}

/// A conversation's worker as a claim needs to know it; `None` if the worker takes no more turns.
fn warm<T: HostedTurn<Fit = Fit>>(conversation: ConversationId, own: &OwnWorker<T>) -> Option<Warm> {
    let Fit { generation, revision, is_guarded } = own.fit;
    let idle = (own.is_idle && !is_guarded).then_some((own.worker, revision));
    own.is_wanted().then_some(Warm { conversation, generation, idle })
}
