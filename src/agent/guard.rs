//! Guards: checks of an input before anything is run, as a spec names them.
//!
//! Owns what they may cost. Refuses, before it is stored, what cannot be checked within that ([`Guards`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{InvalidSpec, guards::Guards};

/// Guards of one agent.
pub(super) const GUARDS_MAX: usize = 32;
/// Characters of one pattern.
pub(super) const PATTERN_MAX: usize = 4096;
/// Memory of all an agent's compiled patterns together.
const PROGRAMS_MAX: usize = 8 << 20;
/// Processor time to compile them all.
const COMPILE_MAX: Duration = Duration::from_secs(2);

/// A check of the input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Guard {
    /// Refuses an input of more characters.
    MaxChars {
        /// The most that is let through.
        limit: u32,
        /// What the client is told.
        notice: Option<String>,
    },
    /// Refuses an input that matches.
    DenyRegex {
        /// A regular expression in the `regex` crate's syntax. What it compiles to is bounded: large counted
        /// repetitions are refused.
        #[schema(max_length = 4096)]
        pattern: String,
        /// What the client is told.
        notice: Option<String>,
    },
}

impl Guard {
    /// What the client is told where it stops an input.
    pub(super) fn notice(&self) -> &str {
        match self {
            Guard::MaxChars { notice, .. } => notice.as_deref().unwrap_or("Your message is too long."),
            Guard::DenyRegex { notice, .. } => notice.as_deref().unwrap_or("Your message was not accepted."),
        }
    }
}

/// Refuses guards that are too many, or cost too much. Takes processor time: not for a task among others.
pub(super) fn validate(guards: &[Guard]) -> Result<(), InvalidSpec> {
    let refuse = |why: String| Err(InvalidSpec { field: "guards", why });
    if guards.len() > GUARDS_MAX {
        let count = guards.len();
        return refuse(format!("are {count}; at most {GUARDS_MAX} are taken: join some with `|`"));
    }
    for (n, guard) in (1..).zip(guards) {
        if let Guard::DenyRegex { pattern, .. } = guard
            && pattern.chars().nth(PATTERN_MAX).is_some()
        {
            return refuse(format!("guard {n} is longer than {PATTERN_MAX} characters: make it several"));
        }
    }
    let Some(guards) = Guards::compile_within(guards, COMPILE_MAX) else {
        return refuse(format!("take longer than {COMPILE_MAX:?} to compile: use fewer and smaller classes"));
    };
    if let Some(why) = guards.faults().next() {
        return refuse(why.to_string());
    }
    if guards.program_bytes() > PROGRAMS_MAX {
        let (kib, most) = (guards.program_bytes() >> 10, PROGRAMS_MAX >> 10);
        return refuse(format!(
            "compile to {kib} KiB in all; at most {most} KiB are taken: \
             use smaller repetition counts, or `(?-u)` where Unicode classes are not needed"
        ));
    }
    Ok(())
}
