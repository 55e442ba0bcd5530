//! The witness: what this process has seen committed of late, to hold against a database that may have
//! gone back in time (a standby was promoted that lacked the newest commits).
//!
//! Fed by this replica's own writes and by its readers; compared in [`crate::store::tables::rewound`]. Keeps what was
//! seen within the last ten minutes: a standby that is further behind loses more than is noticed here.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{event::Kind, id::TurnId};

/// How long what was seen is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// Turns that are kept at most; the oldest go first.
const TURNS_MAX: usize = 65_536;

/// What was seen of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenCommit {
    /// Which turn.
    pub turn: TurnId,
    /// Its newest epoch; 0 where none is known.
    pub epoch: i32,
    /// Its newest `seq`, where it is known.
    pub seq: Option<i32>,
    /// The kind of its last word, where it has one.
    pub end: Option<Kind>,
}

/// What this process has seen committed.
#[derive(Debug, Default)]
pub struct SeenCommits(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    turns: HashMap<TurnId, (SeenCommit, Instant)>,
    /// In the order in which they were put here; one that was seen again since goes to the end.
    order: VecDeque<(TurnId, Instant)>,
}

impl SeenCommits {
    /// The event at `seq` is committed, written under `epoch`.
    pub fn saw(&self, turn: TurnId, epoch: i32, seq: i32) {
        self.note(SeenCommit { turn, epoch, seq: Some(seq), end: None }, Instant::now());
    }

    /// The turn's last word is committed.
    pub fn saw_end(&self, turn: TurnId, epoch: i32, seq: Option<i32>, kind: Kind) {
        self.note(SeenCommit { turn, epoch, seq, end: Some(kind) }, Instant::now());
    }

    /// Everything that is kept.
    pub fn all(&self) -> Vec<SeenCommit> {
        self.all_at(Instant::now())
    }

    fn all_at(&self, now: Instant) -> Vec<SeenCommit> {
        let mut memory = self.lock();
        memory.forget_old(now);
        memory.turns.values().map(|(seen, _)| *seen).collect()
    }

    /// Forgets a turn: what was seen of it is not so any more.
    pub fn forget(&self, turn: TurnId) {
        self.lock().turns.remove(&turn);
    }

    fn note(&self, new: SeenCommit, now: Instant) {
        let mut memory = self.lock();
        match memory.turns.get_mut(&new.turn) {
            Some((seen, at)) => {
                // Readers come later than writers, and some begin at the start.
                seen.epoch = seen.epoch.max(new.epoch);
                seen.seq = seen.seq.max(new.seq);
                seen.end = seen.end.or(new.end);
                *at = now;
            }
            None => {
                memory.turns.insert(new.turn, (new, now));
                memory.order.push_back((new.turn, now));
                memory.forget_old(now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn forget_old(&mut self, now: Instant) {
        while let Some(&(turn, put_at)) = self.order.front() {
            let is_full = self.order.len() > TURNS_MAX;
            if !is_full && now.duration_since(put_at) < KEPT_FOR {
                return;
            }
            self.order.pop_front();
            match self.turns.get(&turn) {
                Some(&(_, seen_at)) if !is_full && now.duration_since(seen_at) < KEPT_FOR => {
                    self.order.push_back((turn, seen_at));
                }
                _ => {
                    self.turns.remove(&turn);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: TurnId = TurnId(uuid::Uuid::nil());

    #[test]
    fn what_is_seen_never_grows_less() {
        let commits = SeenCommits::default();
        commits.saw(TURN, 2, 7);
        commits.saw(TURN, 1, 3);
        commits.saw_end(TURN, 2, Some(9), Kind::Completed);
        commits.saw(TURN, 2, 8);
        let wanted = SeenCommit { turn: TURN, epoch: 2, seq: Some(9), end: Some(Kind::Completed) };
        assert_eq!(commits.all(), [wanted]);
        commits.forget(TURN);
        assert_eq!(commits.all(), []);
    }

    #[test]
    fn what_was_not_seen_for_long_is_forgotten() {
        let (commits, start) = (SeenCommits::default(), Instant::now());
        let other = TurnId(uuid::Uuid::from_u128(1));
        let seen = |turn, seq| SeenCommit { turn, epoch: 1, seq: Some(seq), end: None };
        commits.note(seen(TURN, 1), start);
        commits.note(seen(other, 1), start);
        commits.note(seen(other, 2), start + KEPT_FOR / 2);
        assert_eq!(commits.all_at(start + KEPT_FOR), [seen(other, 2)]);
        assert_eq!(commits.all_at(start + KEPT_FOR * 2), []);
    }
}
