//! The pool: this host's shared workers, by agent and revision.
//!
//! Owns which worker takes a turn: the oldest with a free lane, even while it starts, so that the newest fall idle
//! first. A new worker is started only if no worker has a free lane, so there are never more busy workers than
//! turns.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    lane::Lane,
    reserved::ReservedLanes,
    router::{Standing, TurnRouter, WorkerOutlook},
    waits::Waits,
};
use crate::owner::Program;
use lastword_words::id::{TurnId, WorkerId};

/// Shared workers, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    workers: Mutex<Vec<TurnRouter>>,
    waits: Arc<Waits>,
}

impl Pool {
    /// A lane for `turn` of this agent and revision. Also returns a new worker if one had to be created; the
    /// caller must start it.
    pub(crate) fn lane(
        &self,
        agent: (&str, i32),
        turn: TurnId,
        make: impl FnOnce() -> (WorkerId, Program),
    ) -> (Lane, Option<TurnRouter>) {
        let mut all = self.workers.lock();
        let mut of_agent = all.iter().filter(|router| router.is_of(agent));
        if let Some(lane) = of_agent.find_map(|router| router.connect(turn).map(Lane::new)) {
            return (lane, None);
        }
        let (worker, program) = make();
        let (made, line) = TurnRouter::new(worker, program, turn, self.waits.clone());
        all.push(made.clone());
        (Lane::new(line), Some(made))
    }

    /// A lane for `turn` at a worker that is ready now.
    pub(crate) fn lane_at_once(&self, agent: (&str, i32), turn: TurnId) -> Option<Lane> {
        let all = self.workers.lock();
        let mut ready = all.iter().filter(|router| router.is_of(agent) && router.is_ready());
        ready.find_map(|router| router.connect(turn).map(Lane::new)).filter(Lane::is_alive)
    }

    /// Reserves up to `most` lanes of each ready worker, the oldest worker first. Workers of guarded agents are
    /// left out.
    pub(crate) fn reserve(&self, most: usize) -> Vec<ReservedLanes> {
        let all = self.workers.lock();
        let ready = all.iter().filter(|it| it.is_ready() && !it.program().is_guarded);
        ready.filter_map(|router| router.reserve(most)).collect()
    }

    /// Gives no more turns to this worker, or to any.
    pub(crate) fn retire(&self, only: Option<WorkerId>) {
        for router in self.workers.lock().iter() {
            if only.is_none_or(|worker| worker == router.worker()) {
                router.retire(Standing::Retired);
            }
        }
    }

    /// Kills every worker.
    pub(crate) fn kill(&self) {
        self.workers.lock().iter().for_each(TurnRouter::kill);
    }

    /// The longest idle worker, and since when it is idle.
    pub(crate) fn longest_idle(&self) -> Option<(TurnRouter, Instant)> {
        let all = self.workers.lock();
        let idle = all.iter().filter_map(|it| match it.outlook() {
            WorkerOutlook::Idle(since) => Some((it, since)),
            WorkerOutlook::Busy | WorkerOutlook::Over(_) => None,
        });
        idle.min_by_key(|(_, since)| *since).map(|(it, since)| (it.clone(), since))
    }

    /// The number of idle workers that may still take turns.
    pub(crate) fn idle(&self) -> usize {
        self.workers.lock().iter().filter(|it| matches!(it.outlook(), WorkerOutlook::Idle(_))).count()
    }

    /// Whether a worker has a free lane.
    pub(crate) fn has_room(&self) -> bool {
        self.workers.lock().iter().any(TurnRouter::has_room)
    }

    /// Renews the lifeline of the workers' guards. Returns the number of idle and of busy workers.
    pub(crate) fn renew(&self) -> (usize, usize) {
        let all = self.workers.lock();
        all.iter().for_each(TurnRouter::renew);
        let busy = all.iter().filter(|router| router.outlook() == WorkerOutlook::Busy).count();
        (all.len() - busy, busy)
    }

    /// Total time in which a shared worker's pipe was blocked.
    pub(crate) fn waited(&self) -> Duration {
        self.waits.total()
    }

    /// Removes a worker that has no turn and takes none.
    pub(crate) fn forget(&self, worker: WorkerId) {
        self.workers.lock().retain(|router| router.worker() != worker);
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.lock().len()
    }
}
