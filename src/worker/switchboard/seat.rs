//! Seats: room at a shared worker that is kept for turns while they are claimed.

use super::{Standing, Switchboard};
use crate::{
    id::TurnId,
    store::claim,
    worker::{life::is_dead, line::Extension},
};

/// Room for some turns. Its drop frees what was not taken.
#[derive(Debug)]
pub(in crate::worker) struct Seats {
    switchboard: Switchboard,
    count: usize,
}

impl Switchboard {
    /// Keeps half of the room that there is, so that whoever comes meanwhile finds room too, for `most` turns
    /// at most. `None` where there is none, or where the worker is idle and its guard has not told that it
    /// ended.
    pub(in crate::worker) fn seats(&self, most: usize) -> Option<Seats> {
        let mut state = self.state();
        let is_idle = state.lines.is_empty();
        let is_gone = state.reached.as_ref().is_some_and(|reached| is_idle && is_dead(reached.pid));
        let count = (self.room(&state) / 2).min(most);
        if count == 0 || state.standing != Standing::Open || is_gone {
            return None;
        }
        state.seats += count;
        Some(Seats { switchboard: self.clone(), count })
    }
}

impl Seats {
    /// As a claim must know them.
    pub(in crate::worker) fn describe(&self) -> claim::Seats {
        let agent = self.switchboard.agent();
        claim::Seats {
            agent: agent.name.clone(),
            revision: agent.revision,
            worker: self.switchboard.worker(),
            count: i32::try_from(self.count).unwrap_or(i32::MAX),
        }
    }

    /// Whether they are at this turn's worker.
    pub(in crate::worker) fn are_for(&self, claim: &claim::Claim) -> bool {
        claim.phase == claim::Phase::Running(self.switchboard.worker())
    }

    /// A line for a turn that one of them was kept for; `None` where the worker takes no more turns, or not
    /// this one.
    pub(in crate::worker) fn take(&mut self, turn: TurnId) -> Option<Extension> {
        let line = {
            let mut state = self.switchboard.state();
            let kept = self.count.min(1);
            state.seats -= kept;
            self.count -= kept;
            self.switchboard.connect_in(&mut state, turn)
        };
        line.filter(|line| self.switchboard.is_ready() && line.is_alive())
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.switchboard.state().seats -= self.count;
    }
}
