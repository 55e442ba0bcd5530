//! The pool: this host's shared workers, by agent and revision.
//!
//! Owns which one of them takes a turn: the oldest that has room, also one that is still starting; the
//! newest fall idle first when there is less to do. Where none has room another one is made, so there
//! are never more of them than turns, but for those that are idle or ending.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    /// A lane for `turn` of this agent at this revision, and the worker where a new one had to be made: the caller is to
    /// bring that worker to life.
    pub(crate) fn lane(
        &self,
        agent: (&str, i32),
        turn: TurnId,
        make: impl FnOnce() -> (WorkerId, Program),
    ) -> (Lane, Option<TurnRouter>) {
        let mut all = self.all();
        let mut of_agent = all.iter().filter(|router| router.is_of(agent));
        if let Some(lane) = of_agent.find_map(|router| router.connect(turn).map(Lane::new)) {
            return (lane, None);
        }
        let (worker, program) = make();
        let (made, line) = TurnRouter::new(worker, program, turn, self.waits.clone());
        all.push(made.clone());
        (Lane::new(line), Some(made))
    }

    /// A lane for `turn` to a worker that is ready for the turn at once.
    pub(crate) fn lane_at_once(&self, agent: (&str, i32), turn: TurnId) -> Option<Lane> {
        let all = self.all();
        let mut ready = all.iter().filter(|router| router.is_of(agent) && router.is_ready());
        ready.find_map(|router| router.connect(turn).map(Lane::new)).filter(Lane::is_alive)
    }

    /// Lanes for `most` turns of each worker that is ready, the oldest worker first. None where inputs are checked first.
    pub(crate) fn reserve(&self, most: usize) -> Vec<ReservedLanes> {
        let all = self.all();
        let ready = all.iter().filter(|it| it.is_ready() && !it.program().is_guarded);
        ready.filter_map(|router| router.reserve(most)).collect()
    }

    /// Gives no more turns to this worker, or to any.
    pub(crate) fn retire(&self, only: Option<WorkerId>) {
        for router in self.all().iter() {
            if only.is_none_or(|worker| worker == router.worker()) {
                router.retire(Standing::Retired);
            }
        }
    }

    /// Ends every worker at once.
    pub(crate) fn kill(&self) {
        self.all().iter().for_each(TurnRouter::kill);
    }

    /// The worker that has been idle for longest, and since when.
    pub(crate) fn longest_idle(&self) -> Option<(TurnRouter, Instant)> {
        let all = self.all();
        let idle = all.iter().filter_map(|it| match it.outlook() {
            WorkerOutlook::Idle(since) => Some((it, since)),
            WorkerOutlook::Busy | WorkerOutlook::Over(_) => None,
        });
        idle.min_by_key(|(_, since)| *since).map(|(it, since)| (it.clone(), since))
    }

    /// How many are idle, and may still be given turns.
    pub(crate) fn idle(&self) -> usize {
        self.all().iter().filter(|it| matches!(it.outlook(), WorkerOutlook::Idle(_))).count()
    }

    /// Whether any has room for another turn.
    pub(crate) fn has_room(&self) -> bool {
        self.all().iter().any(TurnRouter::has_room)
    }

    /// Proves this replica's life to the workers' guards; how many are idle, and how many are not.
    pub(crate) fn renew(&self) -> (usize, usize) {
        let all = self.all();
        all.iter().for_each(TurnRouter::renew);
        let busy = all.iter().filter(|router| router.outlook() == WorkerOutlook::Busy).count();
        (all.len() - busy, busy)
    }

    /// The total time for which the pipe of a shared worker has waited.
    pub(crate) fn waited(&self) -> Duration {
        self.waits.total()
    }

    /// The worker takes no more turns, and has none.
    pub(crate) fn forget(&self, worker: WorkerId) {
        self.all().retain(|router| router.worker() != worker);
    }

    pub(crate) fn len(&self) -> usize {
        self.all().len()
    }

    fn all(&self) -> MutexGuard<'_, Vec<TurnRouter>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
