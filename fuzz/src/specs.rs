//! Specs of agents, as JSON.
//!
//! Owns: a spec that is let in reads back as itself, so that the same spec put again is the same
//! revision; its clocks can be counted from any moment; and its guards can be asked.

use std::time::{Duration, Instant};

use lastword::agent::{AgentSpec, Guards, Scope, Timeouts};

/// Nothing that an agent may ask for lasts longer: seven days.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<AgentSpec>(bytes) else { return };
    let stored = serde_json::to_string(&spec).unwrap();
    let read: AgentSpec = serde_json::from_str(&stored).unwrap_or_else(|why| panic!("{why}: {stored}"));
    assert_eq!(read, spec, "{stored}");
    if let Err(why) = spec.validate() {
        assert!(!why.field.is_empty() && !why.why.is_empty());
        return;
    }
    assert!(spec.command.first().is_some_and(|program| !program.is_empty()));
    assert!(spec.command.iter().all(|word| !word.contains('\0')));
    assert!(spec.env.iter().all(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0')));
    let Timeouts { queue, startup, progress, answer, cap } = spec.timeouts;
    for span in [queue, startup, progress, answer, cap, spec.idle_ttl] {
        assert!(span.0 <= LONGEST && Instant::now().checked_add(span.0).is_some(), "{span}");
        assert_eq!(u128::try_from(span.millis()), Ok(span.0.as_millis()));
    }
    assert!((1..=10_000).contains(&spec.turns_per_worker()));
    assert!(spec.scope == Scope::Shared || spec.turns_per_worker() == 1);
    let guards = Guards::compile(&spec.guards);
    assert_eq!(guards.faults().next(), None);
    let _ = guards.check("hello", Duration::from_millis(10));
}
