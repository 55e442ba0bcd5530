//! Cost limits of an agent's guards.
//!
//! Refuses guards that could not be checked within these limits, before they are stored.

use std::time::Duration;

use super::Guards;
use crate::agent::{guard::Guard, invalid::InvalidSpec};

/// Guards per agent.
const GUARDS_MAX: usize = 32;
/// Characters per pattern.
const PATTERN_MAX: usize = 4096;
/// Bytes of memory for all compiled patterns of an agent.
const PROGRAMS_MAX: usize = 8 << 20;
/// CPU time to compile all patterns of an agent.
const COMPILE_MAX: Duration = Duration::from_secs(2);

/// Refuses guards that exceed a limit or do not compile. Uses CPU time: call this on a blocking thread.
pub fn validate(guards: &[Guard]) -> Result<(), InvalidSpec> {
    let refuse = |why: String| Err(InvalidSpec { field: "guards", why });
    if guards.len() > GUARDS_MAX {
        let count = guards.len();
        return refuse(format!("are {count}; at most {GUARDS_MAX} are allowed: join some with `|`"));
    }
    for (n, guard) in (1..).zip(guards) {
        if let Guard::DenyRegex { pattern, .. } = guard
            && pattern.chars().nth(PATTERN_MAX).is_some()
        {
            return refuse(format!("guard {n} is longer than {PATTERN_MAX} characters: split the guard"));
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
            "compile to {kib} KiB in all; at most {most} KiB are allowed: \
             use smaller repetition counts, or `(?-u)` where Unicode classes are not needed"
        ));
    }
    Ok(())
}
