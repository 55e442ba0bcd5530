//! Reserved lanes: room at a shared worker that is kept for turns while they are claimed.

use super::{
    lane::Lane,
    router::{Standing, TurnRouter},
};
use crate::{owner::Program, process::proc_tree::is_dead};
use lastword_words::id::{TurnId, WorkerId};

/// Room for some turns. Its drop frees what was not taken.
#[derive(Debug)]
pub struct ReservedLanes {
    router: TurnRouter,
    count: usize,
}

impl TurnRouter {
    /// Keeps half of the room that there is, so that whoever comes meanwhile finds room too, for `most` turns
    /// at most. `None` where there is none, or where the worker is idle and its guard has not told that it
    /// ended.
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

    /// The worker.
    pub fn worker(&self) -> WorkerId {
        self.router.worker()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A lane for a turn that one of them was kept for; `None` where the worker takes no more turns, or not
    /// this one.
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
