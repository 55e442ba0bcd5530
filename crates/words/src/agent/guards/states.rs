//! Simulates a pattern's NFA: the fallback for texts on which the lazy DFA gives up.
//!
//! Much slower than the DFA, so the clock is checked during the walk here, too.

use regex_automata::{
    nfa::thompson::{NFA, State},
    util::primitives::StateID,
};

use super::budget::Budget;

/// Whether `text` matches; `None` if time runs out first. The clock is checked every `stride` bytes.
pub(super) fn matches(program: &NFA, text: &str, stride: usize, budget: &Budget) -> Option<bool> {
    let (mut now, mut next) = (ReachedStates::of(program), ReachedStates::of(program));
    for at in 0..=text.len() {
        if at % stride == 0 && budget.left().is_zero() {
            return None;
        }
        // A match may begin anywhere, but not inside a character.
        if text.is_char_boundary(at) && now.reach(program, program.start_anchored(), text, at) {
            return Some(true);
        }
        for &state in &now.list {
            let to = match program.state(state) {
                State::ByteRange { trans } if trans.matches(text.as_bytes(), at) => Some(trans.next),
                State::Sparse(ways) => ways.matches(text.as_bytes(), at),
                State::Dense(ways) => ways.matches(text.as_bytes(), at),
                _ => None,
            };
            if to.is_some_and(|to| next.reach(program, to, text, at + 1)) {
                return Some(true);
            }
        }
        std::mem::swap(&mut now, &mut next);
        next.clear();
    }
    Some(false)
}

/// The states reached at one offset of the text.
struct ReachedStates {
    list: Vec<StateID>,
    /// Marks every visited state, by its number, including states without a byte transition.
    is_seen: Vec<bool>,
    seen: Vec<StateID>,
    way: Vec<StateID>,
}

impl ReachedStates {
    fn of(program: &NFA) -> ReachedStates {
        let is_seen = vec![false; program.states().len()];
        ReachedStates { list: Vec::new(), is_seen, seen: Vec::new(), way: Vec::new() }
    }

    fn clear(&mut self) {
        self.list.clear();
        for state in self.seen.drain(..) {
            self.is_seen[state.as_usize()] = false;
        }
    }

    /// Adds a state and its epsilon closure; true if the closure contains a match.
    fn reach(&mut self, program: &NFA, from: StateID, text: &str, at: usize) -> bool {
        self.way.push(from);
        while let Some(state) = self.way.pop() {
            if std::mem::replace(&mut self.is_seen[state.as_usize()], true) {
                continue;
            }
            self.seen.push(state);
            match program.state(state) {
                State::Match { .. } => {
                    // An empty match must not be inside a character.
                    if text.is_char_boundary(at) {
                        return true;
                    }
                }
                State::Fail => {}
                State::Look { look, next } => {
                    if program.look_matcher().matches(*look, text.as_bytes(), at) {
                        self.way.push(*next);
                    }
                }
                State::Union { alternates } => self.way.extend(alternates.iter()),
                State::BinaryUnion { alt1, alt2 } => self.way.extend([*alt1, *alt2]),
                State::Capture { next, .. } => self.way.push(*next),
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => self.list.push(state),
            }
        }
        false
    }
}
