//! Fates: what became of the claims that do not run here any more.
//!
//! Owns what tells a claim that no worker has had, or will have, from one that a worker may have had.
//! Refuses to guess: what may have been forgotten counts as had.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::id::TurnId;

/// Claims that are remembered.
const KEPT_MAX: usize = 65_536;
/// What was forgotten before that is not asked for any more: rows are compared every few seconds.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A worker may have had the turn.
    Had,
    /// No worker has had it, and none here will.
    Forgone,
}

/// The newest of them.
#[derive(Debug, Default)]
pub(super) struct Fates {
    known: HashMap<(TurnId, i32), Fate>,
    oldest_first: VecDeque<(TurnId, i32, Instant)>,
    /// When the newest that is forgotten was noted.
    forgotten: Option<Instant>,
}

impl Fates {
    /// Notes a claim's fate, which is the one that was noted first: this is it.
    pub(super) fn note(&mut self, turn: TurnId, epoch: i32, fate: Fate) -> Fate {
        self.note_at(turn, epoch, fate, Instant::now())
    }

    fn note_at(&mut self, turn: TurnId, epoch: i32, fate: Fate, now: Instant) -> Fate {
        if let Some(&fate) = self.known.get(&(turn, epoch)) {
            return fate;
        }
        let is_forgotten = self.forgotten.is_some_and(|at| now < at + ASKED_MAX);
        let fate = if is_forgotten { Fate::Had } else { fate };
        self.known.insert((turn, epoch), fate);
        self.oldest_first.push_back((turn, epoch, now));
        if self.oldest_first.len() > KEPT_MAX
            && let Some((turn, epoch, at)) = self.oldest_first.pop_front()
        {
            self.known.remove(&(turn, epoch));
            self.forgotten = Some(at);
        }
        fate
    }

    /// Whether no worker here may have this claim any more.
    pub(super) fn is_forgone(&self, turn: TurnId, epoch: i32) -> bool {
        self.known.get(&(turn, epoch)) == Some(&Fate::Forgone)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn turn(n: usize) -> TurnId {
        TurnId(Uuid::from_u128(n as u128))
    }

    #[test]
    fn the_first_fate_is_the_one() {
        let mut fates = Fates::default();
        assert_eq!(fates.note(turn(0), 1, Fate::Forgone), Fate::Forgone);
        assert!(fates.is_forgone(turn(0), 1) && !fates.is_forgone(turn(0), 2));
        assert_eq!(fates.note(turn(0), 1, Fate::Had), Fate::Forgone);
        assert_eq!(fates.note(turn(0), 2, Fate::Had), Fate::Had);
        assert_eq!(fates.note(turn(0), 2, Fate::Forgone), Fate::Had);
    }

    #[test]
    fn what_may_have_been_forgotten_counts_as_had() {
        let (mut fates, now) = (Fates::default(), Instant::now());
        for n in 0..=KEPT_MAX {
            fates.note_at(turn(n), 1, Fate::Had, now);
        }
        assert_eq!(fates.note_at(turn(0), 1, Fate::Forgone, now), Fate::Had, "the first is forgotten");
        let later = now + ASKED_MAX;
        assert_eq!(fates.note_at(turn(KEPT_MAX + 9), 1, Fate::Forgone, later), Fate::Forgone, "long ago");
    }
}
