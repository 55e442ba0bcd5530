//! Reserved lanes: capacity of a shared worker kept for turns while they are claimed.

use super::{
    lane::Lane,
    router::{Standing, TurnRouter},
};
use crate::{owner::Program, process::proc_tree::is_dead};
use lastword_words::id::{TurnId, WorkerId};

/// Some reserved lanes. Dropping them frees those that were not taken.
#[derive(Debug)]
pub struct ReservedLanes {
    router: TurnRouter,
    count: usize,
}

impl TurnRouter {
    /// Reserves at most `most` turns' lanes, and only half of the free ones: turns accepted meanwhile need lanes
    /// too. `None` if there are none, or if the idle worker's process is dead though its guard has not reported
    /// it.
    pub(crate) fn reserve(&self, most: usize) -> Option<ReservedLanes> {
        let mut state = self.state();
        let is_idle = state.lines.is_empty();
        let is_gone = state.reached.as_ref().is_some_and(|reached| is_idle && is_dead(reached.pid));
        let count = (self.room(&state) / 2).min(most);
        if count == 0 || state.standing != Standing::Open || is_gone {
            return None;
        }
        state.reserved += count;
        Some(ReservedLanes { router: self.clone(), count })
    }
}

impl ReservedLanes {
    /// The worker's agent and revision.
    pub fn agent(&self) -> (&str, i32) {
        let Program { agent, revision, .. } = self.router.program();
        (agent, *revision)
    }

    /// The worker's id.
    pub fn worker(&self) -> WorkerId {
        self.router.worker()
    }

    /// The number of lanes left.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes one lane for a turn; `None` if the worker takes no more turns, or not this turn.
    pub fn take(&mut self, turn: TurnId) -> Option<Lane> {
        let lane = {
            let mut state = self.router.state();
            let kept = self.count.min(1);
            state.reserved -= kept;
            self.count -= kept;
            self.router.connect_in(&mut state, turn).map(Lane::new)
        };
        lane.filter(|lane| self.router.is_ready() && lane.is_alive())
    }
}

impl Drop for ReservedLanes {
    fn drop(&mut self) {
        self.router.state().reserved -= self.count;
    }
}
