//! What this replica runs: its workers, and the turns under way.
//!
//! Owns the ways to reach a turn that runs here: orders from clients, and the two stops (lost: say nothing
//! more; interrupted: a deploy ends it). It holds the work; no request does (I12).

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

/// What this replica runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    workers: WorkerHost<Deps>,
}

impl Host {
    /// A host of nothing yet.
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

    /// The runtimes that it hosts.
    pub fn runtimes(&self) -> &'static [Runtime] {
        if self.deps().pods().is_some() {
            &[Runtime::Process, Runtime::Kubernetes]
        } else {
            &[Runtime::Process]
        }
    }

    /// Conversations that have a worker here. Busy workers too: their next turn can be claimed the moment
    /// their last word is written, before the worker is idle again. Shared workers belong to no
    /// conversation.
    pub fn warm(&self) -> Vec<Warm> {
        self.workers.own_workers(|(&conversation, own)| warm(conversation, own))
    }

    /// The conversation's worker here.
    pub(super) fn warm_of(&self, conversation: ConversationId) -> Option<Warm> {
        self.workers.own_worker(conversation, |own| warm(conversation, own))
    }

    /// Releases a claim that does not run here, so that no worker here receives it; false where a worker may have
    /// received it.
    pub fn release_unless_delivered(&self, turn: TurnId, epoch: i32) -> bool {
        self.deps().running().release_unless_delivered(turn, epoch)
    }

    /// Turns that run here, with their epochs.
    pub fn runs(&self) -> HashMap<TurnId, i32> {
        self.deps().running().epochs()
    }

    /// How long each turn that runs here has until its next clock lapses.
    pub fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        self.deps().running().time_left()
    }

    /// Hands an order to a turn that runs here; it is read again later where that is not possible.
    pub fn order(&self, command: Command) {
        self.deps().running().order(command);
    }

    /// Stops a worker when the turns that it runs have ended; they are for the caller to cancel.
    pub fn stop_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        self.workers.retire(worker);
        self.deps().running().of_worker(worker)
    }

    /// Stops idle workers of these conversations, where they are still the workers that `seen` told of: they
    /// can never serve again.
    pub fn stop_taken_over(&self, seen: &[(ConversationId, i64)], taken_over: &[ConversationId]) {
        self.workers.stop_where(|conversation, own| {
            own.is_idle
                && taken_over.contains(&conversation)
                && seen.contains(&(conversation, own.fit.generation))
        });
    }

    /// Lets no worker serve another turn: idle workers end now, others end with their turns.
    pub fn retire_workers(&self) {
        self.workers.retire_all();
    }

    /// Ends every turn here in this way, and every worker.
    pub fn halt_all(&self, why: Halt) {
        self.deps().running().halt_all(why);
        self.retire_workers();
        if why == Halt::Lost {
            // Each turn ends a worker of its own; a shared one has no turn left to wait for.
            self.workers.kill_shared();
        }
    }

    /// Ends the turns that this replica holds no more.
    pub fn halt(&self, turn: TurnId, epoch: i32) {
        self.deps().running().halt(turn, epoch, Halt::Lost);
    }

    /// Proves this replica's life to its workers' guards, and counts the workers. The guards' limit is the longest absence
    /// of Postgres.
    pub fn renew(&self) {
        self.deps().guards().tell_bounds();
        let census = self.workers.renew();
        let slots = self.workers.slots();
        // An idle worker leaves for the next that is needed, so it fills nothing.
        let used = slots.used().saturating_sub(census.idle);
        metrics::bound("workers", used as u64, slots.max() as u64);
        metrics::workers("idle", census.idle);
        metrics::workers("busy", census.busy);
    }

    /// Tells operators how near this replica's bounds are.
    pub fn note_bounds(&self) {
        let slots = self.deps().slots();
        let taken = slots.count().saturating_sub(slots.free());
        metrics::bound("turns", taken as u64, slots.count() as u64);
        self.deps().writer().note_bounds();
    }

    /// How many workers live here.
    pub fn lives(&self) -> usize {
        self.workers.count()
    }

    /// Ends this many workers that have no turn, the longest idle first: what they hold is wanted by others.
    pub fn end_idle(&self, most: usize) {
        self.workers.end_idle(most);
    }

    /// Where a turn may have waited for room meanwhile, the queue is looked at.
    pub fn look_if_wanted(&self) {
        self.deps().slots().look_if_wanted();
    }

    /// Whose turns wait, since they have as many slots here as one token may have.
    pub fn barred(&self) -> Vec<Principal> {
        self.deps().slots().barred()
    }

    /// A part of its token's share for a turn; `None` where the token has all of it.
    pub fn share(&self, turn: TurnId) -> Option<SlotShare> {
        self.deps().slots().share(turn)
    }

    /// The same for a turn that has a slot elsewhere, or here: it is not refused.
    pub fn share_of_held(&self, turn: TurnId) -> Option<SlotShare> {
        self.deps().slots().share_of_held(turn)
    }
}

/// A conversation's worker as a claim must know it; `None` where the worker is not wanted any more.
fn warm<T: HostedTurn<Fit = Fit>>(conversation: ConversationId, own: &OwnWorker<T>) -> Option<Warm> {
    let Fit { generation, revision, is_guarded } = own.fit;
    let idle = (own.is_idle && !is_guarded).then_some((own.worker, revision));
    own.is_wanted().then_some(Warm { conversation, generation, idle })
}
