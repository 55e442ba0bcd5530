//! The pool: this replica's shared workers, by agent and revision.
//!
//! Owns which one of them takes a turn: the oldest that has room, also one that is still starting; the
//! newest fall idle first when there is less to do. Where none has room another one is made, so there
//! are never more of them than turns, but for those that are idle or ending.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{
    line::Extension,
    switchboard::{Outlook, Seats, Standing, Switchboard},
};
use crate::{
    id::{TurnId, WorkerId},
    store::turns::Agent,
};

/// Shared workers, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Switchboard>>);

impl Pool {
    /// A line for `turn`, and the worker that it was made for where there had to be another one: that
    /// one is the caller's to bring to life.
    pub(super) fn line(
        &self,
        agent: &Agent,
        turn: TurnId,
        mint: impl FnOnce() -> WorkerId,
    ) -> (Extension, Option<Switchboard>) {
        let mut all = self.all();
        let mut of_agent = all.iter().filter(|switchboard| switchboard.is_of(agent));
        if let Some(line) = of_agent.find_map(|switchboard| switchboard.connect(turn)) {
            return (line, None);
        }
        let (made, line) = Switchboard::new(mint(), agent, turn);
        all.push(made.clone());
        (line, Some(made))
    }

    /// A line for `turn` to a worker that is ready for it at once.
    pub(super) fn line_at_once(&self, agent: &Agent, turn: TurnId) -> Option<Extension> {
        let all = self.all();
        let mut ready = all.iter().filter(|switchboard| switchboard.is_of(agent) && switchboard.is_ready());
        ready.find_map(|switchboard| switchboard.connect(turn)).filter(Extension::is_alive)
    }

    /// Room for so many turns of each agent at workers that are ready, the oldest first. Of agents whose
    /// inputs need no look.
    pub(super) fn seats(&self, most: usize) -> Vec<Seats> {
        let all = self.all();
        let ready = all.iter().filter(|it| it.is_ready() && it.agent().spec.guards.is_empty());
        ready.filter_map(|switchboard| switchboard.seats(most)).collect()
    }

    /// Gives no more turns to this worker, or to any.
    pub(super) fn retire(&self, only: Option<WorkerId>) {
        for switchboard in self.all().iter() {
            if only.is_none_or(|worker| worker == switchboard.worker()) {
                switchboard.retire(Standing::Retired);
            }
        }
    }

    /// Ends every worker at once.
    pub(super) fn kill(&self) {
        self.all().iter().for_each(Switchboard::kill);
    }

    /// The worker that has been idle for longest, and since when.
    pub(super) fn longest_idle(&self) -> Option<(Switchboard, Instant)> {
        let all = self.all();
        let idle = all.iter().filter_map(|it| match it.outlook() {
            Outlook::Idle(since) => Some((it, since)),
            Outlook::Busy | Outlook::Over(_) => None,
        });
        idle.min_by_key(|(_, since)| *since).map(|(it, since)| (it.clone(), since))
    }

    /// How many are idle, and may still be given turns.
    pub(super) fn idle(&self) -> usize {
        self.all().iter().filter(|it| matches!(it.outlook(), Outlook::Idle(_))).count()
    }

    /// Whether any has room for another turn.
    pub(super) fn has_room(&self) -> bool {
        self.all().iter().any(Switchboard::has_room)
    }

    /// Proves this replica's life to the workers' guards; how many are idle, and how many are not.
    pub(super) fn renew(&self) -> (usize, usize) {
        let all = self.all();
        all.iter().for_each(Switchboard::renew);
        let busy = all.iter().filter(|switchboard| switchboard.outlook() == Outlook::Busy).count();
        (all.len() - busy, busy)
    }

    /// The worker takes no more turns, and has none.
    pub(super) fn forget(&self, worker: WorkerId) {
        self.all().retain(|switchboard| switchboard.worker() != worker);
    }

    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    fn all(&self) -> MutexGuard<'_, Vec<Switchboard>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
