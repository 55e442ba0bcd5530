//! Which turns a shared process has served: whose late words are known as late, and not a stranger's.

use std::collections::{HashMap, VecDeque};

use lastword_words::id::TurnId;

/// Turns of the past that are known. What comes for an older one is taken for a stranger's.
const PAST_MAX: usize = 10_000;

/// The turns that a process has served, the newest of them.
#[derive(Debug, Default)]
pub struct ServedTurns {
    /// Each with whether something came after its end.
    is_late: HashMap<TurnId, bool>,
    oldest_first: VecDeque<TurnId>,
}

impl ServedTurns {
    /// It has served this turn.
    pub fn note(&mut self, turn: TurnId) {
        if self.is_known(turn) {
            return;
        }
        self.is_late.insert(turn, false);
        self.oldest_first.push_back(turn);
        if self.oldest_first.len() > PAST_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.is_late.remove(&oldest);
        }
    }

    /// Whether it has, not too long ago.
    pub fn is_known(&self, turn: TurnId) -> bool {
        self.is_late.contains_key(&turn)
    }

    /// Whether this is the first that came after the turn's end.
    pub(super) fn is_first_late(&mut self, turn: TurnId) -> bool {
        self.is_late.get_mut(&turn).is_some_and(|is_late| !std::mem::replace(is_late, true))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_past_is_bounded() {
        let mut served = ServedTurns::default();
        for n in 0..=PAST_MAX as u128 {
            served.note(turn(n));
            served.note(turn(n));
        }
        assert_eq!((served.is_late.len(), served.oldest_first.len()), (PAST_MAX, PAST_MAX));
        assert!(!served.is_known(turn(0)) && served.is_known(turn(1)));
        assert!(
            served.is_first_late(turn(1)) && !served.is_first_late(turn(1)) && !served.is_first_late(turn(0))
        );
    }

    fn turn(n: u128) -> TurnId {
        TurnId(Uuid::from_u128(n))
    }
}
