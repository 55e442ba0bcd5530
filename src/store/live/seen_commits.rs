//! Commits that this process has seen recently, to detect that a failover lost some (a standby without the newest
//! commits was promoted).
//!
//! Fed by this replica's writes and by its readers; compared in [`crate::store::tables::rewound`]. Keeps the last ten
//! minutes: a standby that lags further behind loses commits that are not noticed here.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{event::Kind, id::TurnId};

/// How long a turn is kept after it was last seen.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// Most turns kept; the oldest are dropped first.
const TURNS_MAX: usize = 65_536;

/// What was seen of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenCommit {
    /// The turn.
    pub turn: TurnId,
    /// The newest epoch seen; 0 if unknown.
    pub epoch: i32,
    /// The newest `seq` seen, if known.
    pub seq: Option<i32>,
    /// The kind of the last word, once seen.
    pub end: Option<Kind>,
}

/// The commits that this process has seen.
#[derive(Debug, Default)]
pub struct SeenCommits(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    turns: HashMap<TurnId, (SeenCommit, Instant)>,
    /// By insertion time. An entry seen again later moves to the end when it comes up for removal.
    order: VecDeque<(TurnId, Instant)>,
}

impl SeenCommits {
    /// Notes that the event at `seq` is committed, under `epoch`.
    pub fn saw(&self, turn: TurnId, epoch: i32, seq: i32) {
        self.note(SeenCommit { turn, epoch, seq: Some(seq), end: None }, Instant::now());
    }

    /// Notes that the turn's last word is committed.
    pub fn saw_end(&self, turn: TurnId, epoch: i32, seq: Option<i32>, kind: Kind) {
        self.note(SeenCommit { turn, epoch, seq, end: Some(kind) }, Instant::now());
    }

    /// Everything kept.
    pub fn all(&self) -> Vec<SeenCommit> {
        self.all_at(Instant::now())
    }

    fn all_at(&self, now: Instant) -> Vec<SeenCommit> {
        let mut memory = self.0.lock();
        memory.forget_old(now);
        memory.turns.values().map(|(seen, _)| *seen).collect()
    }

    /// Drops a turn: the database no longer agrees with what was seen.
    pub fn forget(&self, turn: TurnId) {
        self.0.lock().turns.remove(&turn);
    }

    fn note(&self, new: SeenCommit, now: Instant) {
        let mut memory = self.0.lock();
        match memory.turns.get_mut(&new.turn) {
            Some((seen, at)) => {
                // Reports can be out of order: readers lag behind writers, and some start at 0.
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
