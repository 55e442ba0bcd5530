//! The turns a shared process has served: their late messages are known as late, not as messages for a foreign
//! turn.

use std::collections::{HashMap, VecDeque};

use lastword_words::id::TurnId;

/// Turns remembered. A message for an older turn counts as a message for a foreign turn.
const PAST_MAX: usize = 10_000;

/// The newest turns that a process has served.
#[derive(Debug, Default)]
pub struct ServedTurns {
    /// For each turn, whether a message came after its end.
    is_late: HashMap<TurnId, bool>,
    oldest_first: VecDeque<TurnId>,
}

impl ServedTurns {
    /// Records a served turn.
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

    /// Whether this turn is among the remembered ones.
    pub fn is_known(&self, turn: TurnId) -> bool {
        self.is_late.contains_key(&turn)
    }

    /// Whether this is the first message after the turn's end.
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
