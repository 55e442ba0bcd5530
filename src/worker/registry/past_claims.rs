//! The fate of claims that no longer run here.
//!
//! Owns the difference between a claim that no worker has received or will receive, and a claim that a worker may
//! have received. Never guesses: a claim that may have been forgotten counts as received.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::id::TurnId;

/// Claims that are remembered; the oldest is forgotten first.
const KEPT_MAX: usize = 65_536;
/// How long after a forgotten claim was noted an unknown claim counts as received. `settle` compares every few
/// seconds, so nobody asks about older claims.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimFate {
    /// A worker may have received the turn.
    MaybeDelivered,
    /// No worker has received the turn, and none here will.
    Released,
}

/// The fates of the newest [`KEPT_MAX`] claims.
#[derive(Debug, Default)]
pub(super) struct PastClaims {
    known: HashMap<(TurnId, i32), ClaimFate>,
    oldest_first: VecDeque<(TurnId, i32, Instant)>,
    /// When the most recently forgotten claim was noted.
    forgotten: Option<Instant>,
}

impl PastClaims {
    /// Notes a claim's fate. The first note wins; returns the fate that holds.
    pub(super) fn note(&mut self, turn: TurnId, epoch: i32, fate: ClaimFate) -> ClaimFate {
        self.note_at(turn, epoch, fate, Instant::now())
    }

    fn note_at(&mut self, turn: TurnId, epoch: i32, fate: ClaimFate, now: Instant) -> ClaimFate {
        if let Some(&fate) = self.known.get(&(turn, epoch)) {
            return fate;
        }
        let is_forgotten = self.forgotten.is_some_and(|at| now < at + ASKED_MAX);
        let fate = if is_forgotten { ClaimFate::MaybeDelivered } else { fate };
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

    /// Whether the claim was released: no worker here may receive the turn any more.
    pub(super) fn is_released(&self, turn: TurnId, epoch: i32) -> bool {
        self.known.get(&(turn, epoch)) == Some(&ClaimFate::Released)
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
    fn the_first_fate_that_is_noted_stays() {
        let mut claims = PastClaims::default();
        assert_eq!(claims.note(turn(0), 1, ClaimFate::Released), ClaimFate::Released);
        assert!(claims.is_released(turn(0), 1) && !claims.is_released(turn(0), 2));
        assert_eq!(claims.note(turn(0), 1, ClaimFate::MaybeDelivered), ClaimFate::Released);
        assert_eq!(claims.note(turn(0), 2, ClaimFate::MaybeDelivered), ClaimFate::MaybeDelivered);
        assert_eq!(claims.note(turn(0), 2, ClaimFate::Released), ClaimFate::MaybeDelivered);
    }

    #[test]
    fn what_may_have_been_forgotten_counts_as_delivered() {
        let (mut claims, now) = (PastClaims::default(), Instant::now());
        for n in 0..=KEPT_MAX {
            claims.note_at(turn(n), 1, ClaimFate::MaybeDelivered, now);
        }
        assert_eq!(
            claims.note_at(turn(0), 1, ClaimFate::Released, now),
            ClaimFate::MaybeDelivered,
            "the first is forgotten"
        );
        let later = now + ASKED_MAX;
        assert_eq!(
            claims.note_at(turn(KEPT_MAX + 9), 1, ClaimFate::Released, later),
            ClaimFate::Released,
            "long ago"
        );
    }
}
