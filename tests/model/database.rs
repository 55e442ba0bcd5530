//! The effect of each statement when it is committed. One function for each statement, named as in `src/store` and
//! `migrations/`.
//!
//! The effect is one step of the model if the code decides behind the row's lock, or by columns of the locked row.
//! Values that the code takes from the snapshot of a statement that still waits for its lock were read when the
//! statement was sent, and are carried in it (decision 8).

use super::world::{
    ATTEMPTS, Break, Event, Holder, Id, Kind, LOSSES, Phase, Row, Statement, Turn, World, Wrong,
};

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done. The newest `seq` of the turn; of a claim, also its epoch.
    Done { epoch: u8, base: u8 },
    /// Nothing matched.
    Nothing,
}

/// The model's rules: which guard is missing, and what kind of turns there are.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub broken: Break,
    /// `inflight.is_retry_safe`.
    pub is_retry_safe: bool,
    /// Whether the turns are of one conversation.
    pub is_one_line: bool,
}

impl Rules {
    /// Whether an open turn of the same conversation comes before this one.
    pub fn is_behind(&self, world: &World, turn: u8) -> bool {
        let ordinal = world.turn(turn).ordinal;
        self.is_one_line && world.turns.iter().any(|other| other.row.is_some() && other.ordinal < ordinal)
    }

    /// Commits a statement.
    pub fn commit(&self, world: &mut World, statement: Statement) -> Answer {
        match statement {
            Statement::Accept { turn, saw_empty } => self.accept(world, turn, saw_empty),
            Statement::Claim { by, turn, has_worker } => self.claim(world, by, turn, has_worker),
            Statement::Start { by, turn, epoch } => self.start(world, by, turn, epoch),
            Statement::Append { by, turn, epoch, base } => self.append(world, by, turn, epoch, base),
            Statement::Finish { by, turn, epoch, base } => self.finish(world, by, turn, epoch, base),
            Statement::Release { turn, epoch, is_untouched, .. } => {
                self.release(world, turn, epoch, is_untouched)
            }
            Statement::Disown { by, turn, epoch } => self.disown(world, by, turn, epoch),
            Statement::Close { by, rerun, end } => self.close(world, by, rerun, end),
        }
    }

    /// `lw_accept_v1`: behind the conversation's lock, a repeat is found, the next ordinal is taken, and
    /// the queue clock runs where the line is empty.
    fn accept(&self, world: &mut World, turn: u8, saw_empty: bool) -> Answer {
        if !world.turn(turn).log.is_empty() {
            return Answer::Nothing;
        }
        let ordinal = 1 + world.turns.iter().map(|t| t.ordinal).max().unwrap_or(0);
        let is_empty = !self.is_one_line || world.turns.iter().all(|t| t.row.is_none());
        let is_at_head = if self.broken == Break::AcceptDecidesEarly { saw_empty } else { is_empty };
        let row = Row {
            phase: Phase::Queued,
            epoch: 0,
            holder: Holder::None,
            base: 0,
            is_at_head,
            is_overdue: false,
            is_cancelled: false,
            losses: 0,
        };
        *world.turn_mut(turn) = Turn { row: Some(row), ordinal, ..Turn::default() };
        write(world.turn_mut(turn), Event { seq: 0, kind: Kind::Accepted, epoch: 0, by: 0 });
        Answer::Nothing
    }

    /// `claim`: the locked row must still be queued. The unique index `inflight_one_claimed` refuses a
    /// second claimed turn of a conversation.
    fn claim(&self, world: &mut World, by: Id, turn: u8, has_worker: bool) -> Answer {
        let is_refused = self.is_one_line
            && self.broken != Break::ClaimTakesAny
            && world.turns.iter().any(|t| t.row.is_some_and(|row| row.phase != Phase::Queued));
        let it = world.turn_mut(turn);
        let Some(row) = &mut it.row else { return Answer::Nothing };
        if row.phase != Phase::Queued || is_refused {
            return Answer::Nothing;
        }
        row.phase = if has_worker { Phase::Running } else { Phase::Starting };
        row.epoch += 1;
        row.holder = Holder::Of(by);
        row.is_overdue = false;
        row.base += u8::from(has_worker);
        let (epoch, base) = (row.epoch, row.base);
        if has_worker {
            write(it, Event { seq: base, kind: Kind::Started, epoch, by: by.process });
        }
        Answer::Done { epoch, base }
    }

    /// `start`: the epoch, the phase and the cancel are columns of the locked row. Where it matched
    /// nothing, `started` looks for an earlier try that was committed.
    fn start(&self, world: &mut World, by: Id, turn: u8, epoch: u8) -> Answer {
        let it = world.turn_mut(turn);
        let Some(row) = &mut it.row else { return Answer::Nothing };
        if (row.epoch != epoch && self.broken != Break::StartUnfenced) || row.phase == Phase::Queued {
            return Answer::Nothing;
        }
        if row.phase == Phase::Running {
            return Answer::Done { epoch, base: row.base };
        }
        if row.is_cancelled {
            return Answer::Nothing;
        }
        row.phase = Phase::Running;
        row.base += 1;
        row.is_overdue = false;
        let seq = row.base;
        write(it, Event { seq, kind: Kind::Started, epoch, by: by.process });
        Answer::Done { epoch, base: seq }
    }

    /// `lw_append_v1`: a lock under the epoch, and the event at `base`. A taken `seq` is left alone here, where the
    /// function takes all of it for a repeat: so the epoch is shown to be enough without that.
    fn append(&self, world: &mut World, by: Id, turn: u8, epoch: u8, base: u8) -> Answer {
        let is_unfenced = self.broken == Break::AppendUnfenced;
        let it = world.turn_mut(turn);
        let has_base = it.log.iter().any(|event| event.seq == base);
        let Some(row) = &mut it.row else { return Answer::Nothing };
        if row.phase != Phase::Running || !(is_unfenced || row.epoch == epoch) || !has_base {
            return Answer::Nothing;
        }
        let is_wrong = row.epoch != epoch;
        row.is_overdue = false;
        // A batch of two.
        for seq in [base + 1, base + 2] {
            let is_new = write(it, Event { seq, kind: Kind::Said, epoch, by: by.process });
            if is_wrong && is_new {
                world.wrong = Some(Wrong::Unfenced);
                return Answer::Nothing;
            }
        }
        Answer::Done { epoch, base: base + 2 }
    }

    /// `lw_finish_v1`: fenced by the epoch and the event at `base`; then `lw_end_v1` behind the lock.
    /// Where it matched nothing, `finished` looks for an earlier try that was committed.
    fn finish(&self, world: &mut World, by: Id, turn: u8, epoch: u8, base: u8) -> Answer {
        let is_unfenced = self.broken == Break::FinishUnfenced;
        let it = world.turn_mut(turn);
        let has_base = it.log.iter().any(|event| event.seq == base);
        let Some(row) = it.row else { return Answer::Nothing };
        if row.phase == Phase::Queued || !(is_unfenced || row.epoch == epoch) || !has_base {
            return Answer::Nothing;
        }
        if row.epoch != epoch {
            world.wrong = Some(Wrong::Unfenced);
        }
        self.end(world, by, turn);
        if self.broken == Break::FinishKeepsRow {
            world.turn_mut(turn).row = Some(row);
        }
        Answer::Nothing
    }

    /// `lw_end_v1`, and `lw_promote_v1` after it: the row goes, the status changes and the last word is
    /// written at `max(seq) + 1`, in one statement.
    pub fn end(&self, world: &mut World, by: Id, turn: u8) {
        let it = world.turn_mut(turn);
        let Some(row) = it.row.take() else { return };
        let seq = 1 + it.log.last().map_or(0, |event| event.seq);
        it.is_ended = true;
        write(it, Event { seq, kind: Kind::Last, epoch: row.epoch, by: by.process });
        for next in 0..world.turns.len() as u8 {
            let is_head = !self.is_behind(world, next);
            if let Some(row) = &mut world.turn_mut(next).row {
                row.is_at_head |= row.phase == Phase::Queued && is_head;
            }
        }
    }

    /// `lw_may_rerun_v1`.
    fn may_rerun(&self, turn: &Turn, row: &Row, is_untouched: bool) -> bool {
        let has_said = turn.log.iter().any(|event| event.kind == Kind::Said);
        let is_unreceived =
            row.phase == Phase::Starting || is_untouched || self.broken == Break::RequeueRunning;
        !row.is_cancelled
            && (row.epoch < ATTEMPTS || self.broken == Break::AttemptsUncounted)
            && (is_unreceived || (row.phase == Phase::Running && self.is_retry_safe && !has_said))
    }

    /// `lw_requeue_v1`: the epoch stays, the next claim adds one.
    fn requeue(&self, world: &mut World, turn: u8) {
        let it = world.turn_mut(turn);
        let base = it.log.last().map_or(0, |event| event.seq);
        if let Some(row) = &mut it.row {
            *row = Row {
                phase: Phase::Queued,
                holder: Holder::None,
                base,
                is_at_head: true,
                is_overdue: false,
                ..*row
            };
        }
    }

    /// `lw_release_v1`.
    fn release(&self, world: &mut World, turn: u8, epoch: u8, is_untouched: bool) -> Answer {
        let it = world.turn(turn);
        let Some(row) = it.row else { return Answer::Nothing };
        if row.epoch != epoch || row.phase == Phase::Queued || !self.may_rerun(it, &row, is_untouched) {
            return Answer::Nothing;
        }
        self.requeue(world, turn);
        Answer::Done { epoch, base: 0 }
    }

    /// What `lw_close_v1` would do with a turn, by one look: run it again, end it, or nothing.
    fn due(&self, world: &World, turn: u8) -> Option<Fate> {
        let it = world.turn(turn);
        let row = it.row?;
        let is_gone = row.phase != Phase::Queued && world.is_gone(row.holder);
        match () {
            () if is_gone && self.is_lost_too_often(world, &row) => Some(Fate::End),
            () if is_gone && self.may_rerun(it, &row, false) => Some(Fate::Rerun),
            () if is_gone || row.is_overdue => Some(Fate::End),
            () => None,
        }
    }

    /// Whether this is the second holder that is lost with the turn: it may be what they died of.
    fn is_lost_too_often(&self, world: &World, row: &Row) -> bool {
        let is_asked = self.broken != Break::LossesUnasked;
        is_asked && world.is_lost(row.holder) && row.losses + 1 >= LOSSES
    }

    /// The first statement of `lw_close_v1`: what it looks at and waits for.
    pub fn look(&self, world: &World) -> (u8, u8) {
        let (mut rerun, mut end) = (0, 0);
        for turn in 0..world.turns.len() as u8 {
            match self.due(world, turn) {
                Some(Fate::Rerun) => rerun |= 1 << turn,
                Some(Fate::End) => end |= 1 << turn,
                None => {}
            }
        }
        (rerun, end)
    }

    /// The rest of `lw_close_v1`: decided again now that the rows are held.
    fn close(&self, world: &mut World, by: Id, rerun: u8, end: u8) -> Answer {
        for turn in 0..world.turns.len() as u8 {
            let first = match turn_bit(rerun, turn) {
                true => Some(Fate::Rerun),
                false => turn_bit(end, turn).then_some(Fate::End),
            };
            let now = first.and_then(|_| self.due(world, turn));
            // The lock itself looks once more at the phase of the row it has got.
            let is_held = world.turn(turn).row.is_some_and(|row| row.phase != Phase::Queued);
            let fate = match self.broken {
                Break::CloseDecidesEarly => first.filter(|_| is_held),
                _ => now,
            };
            if fate.is_some() && now.is_none() {
                world.wrong = Some(Wrong::ClosedAlive);
            }
            match fate {
                Some(Fate::Rerun) => {
                    let is_lost = world.turn(turn).row.is_some_and(|row| world.is_lost(row.holder));
                    self.requeue(world, turn);
                    if let Some(row) = &mut world.turn_mut(turn).row {
                        row.losses += u8::from(is_lost);
                    }
                }
                Some(Fate::End) => self.end(world, by, turn),
                None => {}
            }
        }
        Answer::Nothing
    }

    /// `disown`: nobody holds the claim from now on.
    fn disown(&self, world: &mut World, by: Id, turn: u8, epoch: u8) -> Answer {
        if let Some(row) = &mut world.turn_mut(turn).row
            && row.epoch == epoch
            && row.phase != Phase::Queued
            && row.holder == Holder::Of(by)
        {
            row.holder = Holder::Nobody;
            self.note_loss(world);
        }
        Answer::Nothing
    }

    /// Somebody is gone. Only the mutant that closes once a loss looks at this.
    pub fn note_loss(&self, world: &mut World) {
        if self.broken == Break::CloseOncePerLoss {
            world.losses += 1;
        }
    }

    /// `lw_cancel_v1`: a queued turn ends here, a held one is marked and its holder told.
    pub fn cancel(&self, world: &mut World, turn: u8) {
        match &mut world.turn_mut(turn).row {
            Some(row) if row.phase != Phase::Queued => row.is_cancelled = true,
            Some(_) => {
                let by = world.id(REPLICA_OF_CLIENT);
                self.end(world, by, turn);
            }
            None => {}
        }
    }
}

/// The replica whose door the client used.
const REPLICA_OF_CLIENT: usize = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Rerun,
    End,
}

fn turn_bit(mask: u8, turn: u8) -> bool {
    mask & (1 << turn) != 0
}

/// Inserts into the log; false where `(turn_id, seq)` is taken.
fn write(turn: &mut Turn, event: Event) -> bool {
    match turn.log.binary_search_by_key(&event.seq, |event| event.seq) {
        Ok(_) => false,
        Err(at) => {
            turn.log.insert(at, event);
            true
        }
    }
}
