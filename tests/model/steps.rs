//! The steps of the turn model: what replicas, clients, the database and faults may do next.
//!
//! Every possible step can come at any moment: there is no assumption about speed. The effect of a statement is in
//! [`super::database`]; here statements are sent, committed, answered and lost. When each may come is in
//! [`super::choices`].

use stateright::{Model, Property};

use super::{
    database::{Answer, Rules},
    promises,
    world::{
        BOOTS, Break, Condition, Id, Phase, Presence, Process, REPLICAS, Row, Run, Stage, Statement, Trouble,
        World,
    },
};

/// The turn model: its rules, and how much may go wrong.
#[derive(Debug, Clone, Copy)]
pub struct TurnModel {
    pub rules: Rules,
    pub trouble: Trouble,
    /// How many turns are accepted.
    pub turns: u8,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A client posts a turn.
    Accept(u8),
    /// The statement at this place takes effect; its answer arrives.
    Commit(usize),
    /// It takes effect; its answer does not arrive. Its sender repeats it, where it is one to repeat.
    CommitUnknown(usize),
    /// It never takes effect: its connection is gone.
    Vanish(usize),
    /// `engine::dispatch`, `claim`.
    Claim(usize, u8, bool),
    /// `worker::turn::handover`, `start`.
    Start(usize, usize),
    /// `worker::turn::handover`, `deliver`: the first byte.
    Feed(usize, usize),
    /// The worker says something (`worker::turn::write_buffer`).
    Say(usize, usize),
    /// The holder's last word (`worker::turn::terminal`), whatever the cause: the worker's end, a clock, a drain.
    End(usize, usize),
    /// `release`: a drain before the worker had it, or a worker that died before it said anything.
    GiveBack(usize, usize),
    /// `engine::settle`: a claim of ours does not run here. It is given back, or disowned where a
    /// worker may have had it.
    Settle(usize, u8),
    /// `engine::reap`: the first statement of a close.
    Close(usize),
    /// `store::beat`, `judge`.
    Verdict(Id),
    /// `engine::presence`, `start_over`. True: a claim whose answer came too late for its halt lives on.
    StartOver(usize, bool),
    /// `engine::drain` begins.
    Drain(usize),
    /// It ends: `leave`, whatever still runs.
    Leave(usize),
    /// SIGKILL.
    Kill(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// A deadline passes.
    Lapse(u8),
    /// A client cancels.
    Cancel(u8),
}

impl Model for TurnModel {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let process = Process {
            condition: Condition::Alive,
            boot: 0,
            is_claiming: false,
            runs: Vec::new(),
            had: Vec::new(),
        };
        let world = World {
            turns: Default::default(),
            replicas: [[Presence::Ready, Presence::Unborn]; REPLICAS],
            processes: std::array::from_fn(|_| process.clone()),
            air: Vec::new(),
            left: self.trouble,
            losses: 0,
            wrong: None,
        };
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for turn in 0..self.turns {
            let is_sent =
                world.air.iter().any(|s| matches!(s, Statement::Accept { turn: t, .. } if *t == turn));
            if world.turn(turn).log.is_empty() && !is_sent {
                steps.push(Step::Accept(turn));
            }
        }
        self.air_steps(world, steps);
        for p in 0..REPLICAS {
            if world.processes[p].condition == Condition::Alive {
                self.process_steps(world, p, steps);
            }
        }
        self.bad_luck(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, step);
        remember(world, &mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}

impl TurnModel {
    pub fn broken(&self) -> Break {
        self.rules.broken
    }

    fn take(&self, world: &mut World, step: Step) {
        match step {
            Step::Accept(turn) => {
                let saw_empty = world.turns.iter().all(|t| t.row.is_none());
                // Only the mutant looks before the lock.
                let saw_empty = saw_empty && self.broken() == Break::AcceptDecidesEarly;
                world.send(Statement::Accept { turn, saw_empty });
            }
            Step::Commit(i) => {
                let statement = world.air.remove(i);
                let answer = self.rules.commit(world, statement);
                self.answer(world, statement, Some(answer));
            }
            Step::CommitUnknown(i) => {
                world.left.lost_answers -= 1;
                let statement = world.air[i];
                self.rules.commit(world, statement);
                let is_repeated = matches!(
                    statement,
                    Statement::Accept { .. }
                        | Statement::Start { .. }
                        | Statement::Append { .. }
                        | Statement::Finish { .. }
                );
                if !is_repeated {
                    world.air.remove(i);
                    self.answer(world, statement, None);
                }
            }
            Step::Vanish(i) => {
                let statement = world.air.remove(i);
                self.answer(world, statement, None);
            }
            Step::Lapse(turn) => {
                world.left.lapses -= 1;
                edit(world, turn, |row| row.is_overdue = true);
            }
            Step::Cancel(turn) => {
                world.left.cancels -= 1;
                self.rules.cancel(world, turn);
            }
            Step::Verdict(id) => {
                if world.processes[usize::from(id.process)].condition == Condition::Alive {
                    world.left.wrong_verdicts -= 1;
                }
                world.set_presence(id, Presence::Lost);
                self.rules.note_loss(world);
            }
            Step::Close(p) => {
                let (mut rerun, mut end) = self.rules.look(world);
                if self.broken() == Break::CloseOncePerLoss {
                    world.losses -= 1;
                }
                if self.broken() == Break::CloseDoesNotLoop {
                    // A page of one.
                    let first = (rerun | end) & (rerun | end).wrapping_neg();
                    (rerun, end) = (rerun & first, end & first);
                }
                world.send(Statement::Close { by: world.id(p), rerun, end });
            }
            Step::Claim(p, turn, has_worker) => {
                world.processes[p].is_claiming = true;
                world.send(Statement::Claim { by: world.id(p), turn, has_worker });
            }
            Step::Settle(p, turn) => {
                let (by, epoch) = (world.id(p), world.turn(turn).row.map_or(0, |row| row.epoch));
                let is_had = world.processes[p].had.contains(&(turn, epoch));
                world.send(match !is_had || self.broken() == Break::AstrayUnasked {
                    true => Statement::Release { by, turn, epoch, is_untouched: true },
                    false => Statement::Disown { by, turn, epoch },
                });
            }
            Step::Start(p, r)
            | Step::Feed(p, r)
            | Step::Say(p, r)
            | Step::End(p, r)
            | Step::GiveBack(p, r) => {
                self.advance(world, p, r, step);
            }
            _ => self.change_process(world, step),
        }
    }

    /// A run's own next step.
    fn advance(&self, world: &mut World, p: usize, r: usize, step: Step) {
        let by = world.id(p);
        let held_turn = world.processes[p].runs[r].turn;
        // `exists (select from replicas …)`: the row's holder, as the snapshot shows it.
        let is_refused = world.turn(held_turn).row.is_none_or(|row| world.is_gone(row.holder));
        let run = &mut world.processes[p].runs[r];
        let Run { turn, epoch, base, .. } = *run;
        match step {
            Step::Start(..) if is_refused => {
                world.processes[p].runs.remove(r);
            }
            Step::Start(..) => {
                run.stage = Stage::Starting;
                world.send(Statement::Start { by, turn, epoch });
            }
            Step::Feed(..) => {
                run.is_fed = true;
                world.turn_mut(turn).received += 1;
            }
            Step::Say(..) => {
                (run.stage, run.has_said) = (Stage::Writing, true);
                world.send(Statement::Append { by, turn, epoch, base });
            }
            Step::GiveBack(..) => {
                world.left.crashes -= u8::from(run.stage == Stage::Running);
                let is_untouched = run.stage == Stage::Running
                    && (!run.is_fed || self.rules.broken == Break::UntouchedUnasked);
                run.stage = Stage::Ending;
                world.send(Statement::Release { by, turn, epoch, is_untouched });
            }
            _ => {
                world.left.crashes -= u8::from(run.stage == Stage::Claimed);
                run.stage = Stage::Ending;
                world.send(Statement::Finish { by, turn, epoch, base });
            }
        }
        world.processes[p].runs.sort_unstable();
    }

    /// The answer reaches its sender, where that still waits for it. `None`: there was none.
    fn answer(&self, world: &mut World, statement: Statement, answer: Option<Answer>) {
        let Some(by) = statement.by() else { return };
        let is_draining = world.presence(by) == Presence::Draining;
        let process = &mut world.processes[usize::from(by.process)];
        if process.condition == Condition::Dead || process.boot != by.boot {
            return;
        }
        let found = |turn, epoch, stage| {
            let is_it = |run: &Run| run.turn == turn && run.epoch == epoch && run.stage == stage;
            process.runs.iter().position(is_it)
        };
        match (statement, answer) {
            (Statement::Claim { turn, has_worker, .. }, _) => {
                process.is_claiming = false;
                if let Some(Answer::Done { epoch, base }) = answer {
                    let stage = if has_worker { Stage::Running } else { Stage::Claimed };
                    // An older claim of the same turn, by this very replica, is over.
                    process.runs.retain(|run| run.turn != turn);
                    process.runs.push(Run { turn, epoch, base, stage, is_fed: false, has_said: false });
                }
            }
            (Statement::Start { turn, epoch, .. }, answer) => {
                if let Some(r) = found(turn, epoch, Stage::Starting) {
                    match answer {
                        Some(Answer::Done { base, .. }) => {
                            (process.runs[r].stage, process.runs[r].base) = (Stage::Running, base);
                        }
                        // Cancelled before it started: the holder says so. Else the lease is lost, and
                        // that last word finds nothing.
                        _ => {
                            process.runs[r].stage = Stage::Ending;
                            let base = process.runs[r].base;
                            world.send(Statement::Finish { by, turn, epoch, base });
                        }
                    }
                }
            }
            (Statement::Append { turn, epoch, .. }, answer) => {
                if let Some(r) = found(turn, epoch, Stage::Writing) {
                    match answer {
                        Some(Answer::Done { base, .. }) => {
                            (process.runs[r].stage, process.runs[r].base) = (Stage::Running, base);
                        }
                        _ => drop(process.runs.remove(r)),
                    }
                }
            }
            (Statement::Finish { turn, epoch, .. }, _) => {
                if let Some(r) = found(turn, epoch, Stage::Ending) {
                    process.runs.remove(r);
                }
            }
            (Statement::Release { turn, epoch, .. }, answer) => {
                if let Some(r) = found(turn, epoch, Stage::Ending) {
                    let run = process.runs.remove(r);
                    // A worker that died before it said anything: not released, so its end is told.
                    if run.is_fed && !matches!(answer, Some(Answer::Done { .. })) && !is_draining {
                        process.runs.push(run);
                        world.send(Statement::Finish { by, turn, epoch, base: run.base });
                    }
                } else if answer == Some(Answer::Nothing) {
                    // `settle` could not give it back.
                    world.send(Statement::Disown { by, turn, epoch });
                }
            }
            _ => {}
        }
        world.processes[usize::from(by.process)].runs.sort_unstable();
    }

    fn change_process(&self, world: &mut World, step: Step) {
        match step {
            Step::Kill(p) => {
                world.left.kills -= 1;
                stop(&mut world.processes[p], Condition::Dead);
            }
            Step::Freeze(p) => {
                world.left.freezes -= 1;
                world.processes[p].condition = Condition::Frozen;
            }
            Step::Thaw(p) => world.processes[p].condition = Condition::Alive,
            Step::Drain(p) => {
                world.left.drains -= 1;
                world.set_presence(world.id(p), Presence::Draining);
            }
            Step::Leave(p) => {
                world.set_presence(world.id(p), Presence::Left);
                self.rules.note_loss(world);
                stop(&mut world.processes[p], Condition::Dead);
            }
            Step::StartOver(p, keeps_claims) => {
                let process = &mut world.processes[p];
                process.is_claiming = false;
                process.runs.retain(|run| keeps_claims && run.stage == Stage::Claimed);
                if process.boot + 1 == BOOTS {
                    stop(process, Condition::Dead);
                } else {
                    process.boot += 1;
                    world.set_presence(world.id(p), Presence::Ready);
                }
            }
            _ => {}
        }
    }
}

/// A process that takes no step any more knows nothing.
fn stop(process: &mut Process, condition: Condition) {
    process.condition = condition;
    process.is_claiming = false;
    process.runs.clear();
    process.had.clear();
}

/// Notes what has left the lists of runs. What is held no more is not asked for again.
fn remember(before: &World, world: &mut World) {
    let turns = world.turns.clone();
    for (process, before) in world.processes.iter_mut().zip(&before.processes) {
        if process.condition == Condition::Dead {
            continue;
        }
        let (runs, had) = (&process.runs, &mut process.had);
        let is_here = |(turn, epoch): (u8, u8)| runs.iter().any(|run| (run.turn, run.epoch) == (turn, epoch));
        let known = before.runs.iter().map(|run| (run.turn, run.epoch));
        had.extend(known.filter(|&claim| !is_here(claim)));
        had.sort_unstable();
        had.dedup();
        had.retain(|&(turn, epoch)| {
            let row = turns[usize::from(turn)].row;
            row.is_some_and(|row| row.epoch == epoch && row.phase != Phase::Queued)
        });
    }
}

fn edit(world: &mut World, turn: u8, change: impl FnOnce(&mut Row)) {
    if let Some(row) = &mut world.turn_mut(turn).row {
        change(row);
    }
}
