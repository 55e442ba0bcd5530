//! What an agent's guards may cost.
//!
//! Refuses, before it is stored, what cannot be checked within that.

use std::time::Duration;

use super::Guards;
use crate::agent::{guard::Guard, invalid::InvalidSpec};

/// Guards of one agent.
const GUARDS_MAX: usize = 32;
/// Characters of one pattern.
const PATTERN_MAX: usize = 4096;
/// Memory of all an agent's compiled patterns together.
const PROGRAMS_MAX: usize = 8 << 20;
/// Processor time to compile them all.
const COMPILE_MAX: Duration = Duration::from_secs(2);

/// Refuses guards that are too many, or cost too much. Takes processor time: not for a task among others.
pub fn validate(guards: &[Guard]) -> Result<(), InvalidSpec> {
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
