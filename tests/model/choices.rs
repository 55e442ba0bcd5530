//! The possible next steps in any state of the turn model.
//!
//! Guards that a replica knows by itself are here: one claim at a time, one write of a turn at a time, no claim during
//! a drain. Guards that the database keeps are in [`super::database`].

use super::{
    steps::{Step, TurnModel},
    world::{BOOTS, Break, Condition, Holder, Phase, Presence, REPLICAS, Run, Stage, Statement, World},
};

impl TurnModel {
    pub fn process_steps(&self, world: &World, p: usize, steps: &mut Vec<Step>) {
        let (process, id) = (&world.processes[p], world.id(p));
        let presence = world.presence(id);
        if !matches!(presence, Presence::Ready | Presence::Draining) {
            steps.push(Step::StartOver(p, false));
            if process.runs.iter().any(|run| run.stage == Stage::Claimed) {
                steps.push(Step::StartOver(p, true));
            }
        }
        for turn in 0..self.turns {
            let Some(row) = world.turn(turn).row else { continue };
            let is_next = self.broken() == Break::ClaimTakesAny || !self.rules.is_behind(world, turn);
            let may_claim = presence == Presence::Ready && !process.is_claiming;
            if row.phase == Phase::Queued && is_next && may_claim {
                steps.extend([Step::Claim(p, turn, false), Step::Claim(p, turn, true)]);
            }
            let is_astray = row.holder == Holder::Of(id) && !process.runs.iter().any(|run| run.turn == turn);
            let is_settled = |s: &Statement| {
                let is_about = matches!(*s, Statement::Disown { turn: t, .. } | Statement::Release { turn: t, .. } if t == turn);
                is_about && s.by() == Some(id)
            };
            if is_astray && !world.air.iter().any(is_settled) {
                steps.push(Step::Settle(p, turn));
            }
        }
        for (r, run) in process.runs.iter().enumerate() {
            self.run_steps(world, p, r, run, steps);
        }
        let is_closing = world.air.iter().any(|s| matches!(s, Statement::Close { .. }) && s.by() == Some(id));
        if !is_closing && presence == Presence::Ready {
            let is_time = match self.broken() {
                Break::CloseOncePerLoss => world.losses > 0,
                _ => self.rules.look(world) != (0, 0),
            };
            if is_time {
                steps.push(Step::Close(p));
            }
        }
        if presence == Presence::Draining {
            steps.push(Step::Leave(p));
        }
    }

    fn run_steps(&self, world: &World, p: usize, r: usize, run: &Run, steps: &mut Vec<Step>) {
        let is_draining = world.presence(world.id(p)) == Presence::Draining;
        let may_crash = world.left.crashes > 0;
        match run.stage {
            Stage::Claimed => {
                steps.push(Step::Start(p, r));
                if may_crash {
                    steps.push(Step::End(p, r));
                }
                if self.broken() == Break::FirstByteEarly && !run.is_fed {
                    steps.push(Step::Feed(p, r));
                }
            }
            Stage::Running if !run.is_fed => steps.push(Step::Feed(p, r)),
            Stage::Running => {
                steps.push(Step::End(p, r));
                if !run.has_said {
                    steps.push(Step::Say(p, r));
                }
            }
            Stage::Starting | Stage::Writing | Stage::Ending => {}
        }
        let is_interrupted = is_draining && matches!(run.stage, Stage::Claimed | Stage::Starting);
        let is_crashed = may_crash
            && self.rules.is_retry_safe
            && run.stage == Stage::Running
            && run.is_fed
            && !run.has_said;
        // Its worker has died before it received the turn.
        let is_untouched = may_crash
            && run.stage == Stage::Running
            && (!run.is_fed || self.broken() == Break::UntouchedUnasked);
        if is_interrupted || is_crashed || is_untouched {
            steps.push(Step::GiveBack(p, r));
        }
    }

    pub fn bad_luck(&self, world: &World, steps: &mut Vec<Step>) {
        let left = &world.left;
        for p in 0..REPLICAS {
            let (process, id) = (&world.processes[p], world.id(p));
            let (is_alive, is_last) = (process.condition == Condition::Alive, p == REPLICAS - 1);
            let presence = world.presence(id);
            if is_alive && !is_last {
                for (budget, step) in [(left.kills, Step::Kill(p)), (left.freezes, Step::Freeze(p))] {
                    if budget > 0 {
                        steps.push(step);
                    }
                }
                if left.drains > 0 && presence == Presence::Ready {
                    steps.push(Step::Drain(p));
                }
            }
            if process.condition == Condition::Frozen {
                steps.push(Step::Thaw(p));
            }
            let is_at_work = matches!(presence, Presence::Ready | Presence::Draining);
            let has_judge = (0..REPLICAS).any(|q| q != p && world.processes[q].condition == Condition::Alive);
            let may_start_over = process.boot + 1 < BOOTS;
            let may_be_wrong = left.wrong_verdicts > 0 && (may_start_over || !is_last);
            if is_at_work && has_judge && (!is_alive || may_be_wrong) {
                steps.push(Step::Verdict(id));
            }
        }
        for turn in 0..self.turns {
            if let Some(row) = &world.turn(turn).row {
                if left.lapses > 0 && !row.is_overdue {
                    steps.push(Step::Lapse(turn));
                }
                if left.cancels > 0 && !row.is_cancelled {
                    steps.push(Step::Cancel(turn));
                }
            }
        }
    }

    pub fn air_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for (i, statement) in world.air.iter().enumerate() {
            if i > 0 && world.air[i - 1] == *statement {
                continue;
            }
            steps.push(Step::Commit(i));
            let Some(by) = statement.by() else {
                if world.left.lost_answers > 0 {
                    steps.push(Step::CommitUnknown(i));
                }
                continue;
            };
            let process = &world.processes[usize::from(by.process)];
            let is_cut_off = process.condition == Condition::Dead || world.is_gone(Holder::Of(by));
            if is_cut_off || matches!(statement, Statement::Claim { .. } | Statement::Close { .. }) {
                steps.push(Step::Vanish(i));
            }
            let is_awaited = process.condition != Condition::Dead && process.boot == by.boot;
            if world.left.lost_answers > 0 && is_awaited && !matches!(statement, Statement::Close { .. }) {
                steps.push(Step::CommitUnknown(i));
            }
        }
    }
}
