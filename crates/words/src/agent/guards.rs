//! Compiled guards: a text is checked within a budget of CPU time, whatever the patterns are.
//!
//! A match in the crate `regex` cannot be interrupted, and costs up to the text's length times the pattern's size:
//! minutes. So a pattern becomes a lazy DFA that is walked here byte by byte, with regular checks of the clock. Fails
//! closed: a guard that does not compile, or does not finish in time, stops the input.

mod budget;
mod cost;
mod states;

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use regex_automata::{
    Input,
    hybrid::dfa::{Cache, DFA},
    nfa::thompson::{self, WhichCaptures},
};

use self::budget::Budget;
pub use self::cost::validate;
use super::guard::Guard;

/// Memory to compile one pattern. The worst-case cost of one byte of text grows with it, to a few milliseconds.
const PROGRAM_MAX: usize = 3 << 20;
/// Memory for a walk's cached states, unless the pattern needs more.
const CACHE: usize = 64 << 10;
/// States times bytes between two checks of the clock: some milliseconds at worst, usually some microseconds.
const STRIDE: usize = 1 << 20;

/// An agent's compiled guards. One value serves many checks.
#[derive(Debug)]
pub struct Guards(Vec<Compiled>);

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardFinding {
    /// No guard stops the text.
    Passed,
    /// A guard stops the text, with this notice.
    Stopped(String),
    /// The check ran out of time.
    Unfinished,
    /// A guard is unusable.
    Unusable(GuardFault),
}

/// A guard that does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("guard {place}, `{pattern}`, {why}")]
pub struct GuardFault {
    /// The guard's place in the spec, from 1.
    place: usize,
    pattern: String,
    why: String,
}

#[derive(Debug)]
enum Compiled {
    MaxChars { limit: usize, notice: String },
    Deny { deny: Box<Deny>, notice: String },
    Unusable(GuardFault),
}

/// A pattern that must not match.
struct Deny {
    pattern: String,
    automaton: DFA,
    /// The state cache of the last finished walk; the next walk reuses it.
    cache: Mutex<Option<Cache>>,
}

impl Guards {
    /// Compiles guards. A guard that does not compile becomes a fault.
    pub fn compile(guards: &[Guard]) -> Guards {
        Guards((1..).zip(guards).map(|(place, guard)| Compiled::of(place, guard)).collect())
    }

    /// [`Guards::compile`] within a budget of CPU time; `None` if the budget runs out.
    pub(super) fn compile_within(guards: &[Guard], within: Duration) -> Option<Guards> {
        let budget = Budget::start(within);
        let mut compiled = Vec::with_capacity(guards.len());
        for (place, guard) in (1..).zip(guards) {
            compiled.push(Compiled::of(place, guard));
            if budget.left().is_zero() {
                return None;
            }
        }
        Some(Guards(compiled))
    }

    /// The guards that do not compile.
    pub fn faults(&self) -> impl Iterator<Item = &GuardFault> {
        self.0.iter().filter_map(|guard| match guard {
            Compiled::Unusable(fault) => Some(fault),
            Compiled::MaxChars { .. } | Compiled::Deny { .. } => None,
        })
    }

    /// Memory of the compiled patterns, in bytes.
    pub(super) fn program_bytes(&self) -> usize {
        self.denies().map(|deny| deny.automaton.get_nfa().memory_usage()).sum()
    }

    /// Memory that patterns and caches may take together, in bytes.
    pub fn bytes(&self) -> usize {
        let caches: usize = self.denies().map(|deny| deny.automaton.get_config().get_cache_capacity()).sum();
        self.program_bytes() + caches
    }

    fn denies(&self) -> impl Iterator<Item = &Deny> {
        self.0.iter().filter_map(|guard| match guard {
            Compiled::Deny { deny, .. } => Some(&**deny),
            Compiled::MaxChars { .. } | Compiled::Unusable(_) => None,
        })
    }

    /// Checks `text` within a budget of CPU time; call this on a blocking thread. Reports the first guard that does
    /// not pass the text.
    pub fn check(&self, text: &str, within: Duration) -> GuardFinding {
        let budget = Budget::start(within);
        for guard in &self.0 {
            let found = match guard {
                Compiled::MaxChars { limit, notice } => {
                    text.chars().nth(*limit).map(|_| GuardFinding::Stopped(notice.clone()))
                }
                Compiled::Deny { deny, notice } => match deny.matches(text, &budget) {
                    Some(false) => None,
                    Some(true) => Some(GuardFinding::Stopped(notice.clone())),
                    None => Some(GuardFinding::Unfinished),
                },
                Compiled::Unusable(fault) => Some(GuardFinding::Unusable(fault.clone())),
            };
            if let Some(found) = found {
                return found;
            }
        }
        GuardFinding::Passed
    }
}

impl Compiled {
    fn of(place: usize, guard: &Guard) -> Compiled {
        let notice = guard.notice().to_owned();
        match guard {
            Guard::MaxChars { limit, .. } => Compiled::MaxChars { limit: *limit as usize, notice },
            Guard::DenyRegex { pattern, .. } => match Deny::of(pattern) {
                Ok(deny) => Compiled::Deny { deny: Box::new(deny), notice },
                Err(why) => Compiled::Unusable(GuardFault { place, pattern: pattern.clone(), why }),
            },
        }
    }
}

impl Deny {
    fn of(pattern: &str) -> Result<Deny, String> {
        let program =
            thompson::Config::new().nfa_size_limit(Some(PROGRAM_MAX)).which_captures(WhichCaptures::None);
        let program = thompson::Compiler::new().configure(program).build(pattern).map_err(|why| match why
            .size_limit()
        {
            Some(_) => format!(
                "takes more than {} MiB to compile: use smaller repetition counts, or `(?-u)` where \
                     Unicode classes are not needed",
                PROGRAM_MAX >> 20
            ),
            None => format!("is not a regular expression: {}", root_of(&why)),
        })?;
        let config = DFA::config().unicode_word_boundary(true);
        let least = config.get_minimum_cache_capacity(&program).map_err(|why| root_of(&why))?;
        let config = config.cache_capacity(least.saturating_mul(2).max(CACHE));
        let automaton =
            DFA::builder().configure(config).build_from_nfa(program).map_err(|why| root_of(&why))?;
        Ok(Deny { pattern: pattern.to_owned(), automaton, cache: Mutex::default() })
    }

    /// Whether `text` matches; `None` if time runs out first.
    fn matches(&self, text: &str, budget: &Budget) -> Option<bool> {
        let kept = self.cache.lock().take();
        let mut cache = kept.unwrap_or_else(|| self.automaton.create_cache());
        let walked = self.walk(text, &mut cache, budget);
        *self.cache.lock() = Some(cache);
        match walked {
            Walked::Through { is_match } => Some(is_match),
            // A Unicode word boundary next to non-ASCII letters.
            Walked::NoWay => states::matches(self.automaton.get_nfa(), text, self.stride(), budget),
            Walked::Late => None,
        }
    }

    /// Bytes between two checks of the clock.
    fn stride(&self) -> usize {
        (STRIDE / self.automaton.get_nfa().states().len().max(1)).clamp(16, 4096)
    }

    fn walk(&self, text: &str, cache: &mut Cache, budget: &Budget) -> Walked {
        let automaton = &self.automaton;
        let Ok(mut at) = automaton.start_state_forward(cache, &Input::new(text)) else {
            return Walked::NoWay;
        };
        for piece in text.as_bytes().chunks(self.stride()) {
            for &byte in piece {
                let Ok(next) = automaton.next_state(cache, at, byte) else { return Walked::NoWay };
                at = next;
                if at.is_tagged() {
                    match () {
                        () if at.is_match() => return Walked::Through { is_match: true },
                        () if at.is_dead() => return Walked::Through { is_match: false },
                        () if at.is_quit() => return Walked::NoWay,
                        () => {}
                    }
                }
            }
            if budget.left().is_zero() {
                return Walked::Late;
            }
        }
        match automaton.next_eoi_state(cache, at) {
            Ok(end) => Walked::Through { is_match: end.is_match() },
            Err(_) => Walked::NoWay,
        }
    }
}

impl fmt::Debug for Deny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deny").field(&self.pattern).finish()
    }
}

/// The end of a walk.
enum Walked {
    Through {
        is_match: bool,
    },
    /// The DFA cannot decide.
    NoWay,
    Late,
}

/// The innermost cause. The outer causes only name the compiler's step.
fn root_of(why: &dyn std::error::Error) -> String {
    let mut why = why;
    while let Some(cause) = why.source() {
        why = cause;
    }
    why.to_string()
}

#[cfg(test)]
mod tests;
