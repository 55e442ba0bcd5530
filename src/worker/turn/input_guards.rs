//! Input guards: patterns that a turn's input must pass before any worker is started for it.
//!
//! Owns the compiled patterns (one set a revision) and the threads that check them: a quick lane for checks of
//! milliseconds, and a thorough lane of one thread for the rest. So costly texts wait only for each other, and no
//! async task is blocked. Fails closed: input that cannot be checked within its budget is stopped, and client and
//! log learn why.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{
    agent::{GuardFinding, Guards},
    store::turns::Agent,
    telemetry::metrics,
};

/// For each lane: checks at once, and processor time for each.
const QUICK: (usize, Duration) = (2, Duration::from_millis(10));
const THOROUGH: (usize, Duration) = (1, Duration::from_millis(500));
/// Memory of compiled guards, in bytes. Beyond it the least recently used are dropped.
const KEPT_MAX: usize = 64 << 20;

const TOO_COSTLY: &str =
    "Your message takes too long to check against this agent's rules. A shorter one may pass.";
const UNUSABLE: &str =
    "Your message was not accepted: a rule of this agent cannot be checked. Its operator must fix the rule.";

#[derive(Debug)]
pub(in crate::worker) struct InputGuards {
    kept: Mutex<Kept>,
    quick: Arc<Semaphore>,
    thorough: Arc<Semaphore>,
}

#[derive(Debug)]
struct Kept {
    most: usize,
    revisions: HashMap<(String, i32), (Arc<Guards>, u64)>,
    bytes: usize,
    uses: u64,
}

impl Default for InputGuards {
    fn default() -> Self {
        let lane = |(places, _)| Arc::new(Semaphore::new(places));
        let kept = Kept { most: KEPT_MAX, revisions: HashMap::new(), bytes: 0, uses: 0 };
        InputGuards { kept: Mutex::new(kept), quick: lane(QUICK), thorough: lane(THOROUGH) }
    }
}

/// The notice of the guard that stops this input; `None` if the input passes.
pub(in crate::worker) async fn stopped_by(
    guards: &Arc<InputGuards>,
    agent: &Agent,
    input: &str,
) -> Option<String> {
    if agent.spec.guards.is_empty() {
        return None;
    }
    guards.clone().stop(agent, input.into()).await
}

impl InputGuards {
    /// Publishes how busy the thorough lane is.
    pub(in crate::worker) fn tell_bounds(&self) {
        let used = THOROUGH.0 - self.thorough.available_permits();
        metrics::bound("thorough_guard_checks", used as u64, THOROUGH.0 as u64);
    }

    async fn stop(self: Arc<Self>, agent: &Agent, input: Arc<str>) -> Option<String> {
        for (lane, (_, budget)) in [(&self.quick, QUICK), (&self.thorough, THOROUGH)] {
            // The semaphores are never closed.
            let Ok(permit) = lane.clone().acquire_owned().await else { break };
            let (checks, agent, input) = (self.clone(), agent.clone(), input.clone());
            let checking = tokio::task::spawn_blocking(move || {
                // Held by the thread: the caller may be gone before the check ends.
                let _permit = permit;
                let text = text_of(&input).ok()?;
                Some(checks.compiled(&agent).check(&text, budget))
            });
            match checking.await {
                Ok(Some(GuardFinding::Passed)) => return None,
                Ok(Some(GuardFinding::Stopped(notice))) => return Some(notice),
                Ok(Some(GuardFinding::Unfinished)) => {}
                Ok(Some(GuardFinding::Unusable(fault))) => {
                    tracing::error!(%fault, "a guard cannot be used: its agent's turns are stopped");
                    return Some(UNUSABLE.to_owned());
                }
                Ok(None) => {
                    tracing::error!("an input has no text; it is stopped");
                    return Some(UNUSABLE.to_owned());
                }
                // A panic fails this turn only.
                Err(why) => {
                    tracing::error!(%why, "a check of an input panicked; it is stopped");
                    return Some(UNUSABLE.to_owned());
                }
            }
        }
        tracing::warn!(budget = ?THOROUGH.1, bytes = input.len(), "an input takes too long to check; it is stopped");
        Some(TOO_COSTLY.to_owned())
    }

    /// A revision's compiled guards. Two first callers may both compile them.
    fn compiled(&self, agent: &Agent) -> Arc<Guards> {
        let revision = (agent.name.clone(), agent.revision);
        if let Some(guards) = self.kept.lock().find(&revision) {
            return guards;
        }
        let guards = Arc::new(Guards::compile(&agent.spec.guards));
        self.kept.lock().keep(revision, guards.clone());
        guards
    }
}

impl Kept {
    fn find(&mut self, revision: &(String, i32)) -> Option<Arc<Guards>> {
        self.uses += 1;
        let (guards, used) = self.revisions.get_mut(revision)?;
        *used = self.uses;
        Some(guards.clone())
    }

    fn keep(&mut self, revision: (String, i32), guards: Arc<Guards>) {
        self.bytes += guards.bytes();
        if let Some((former, _)) = self.revisions.insert(revision, (guards, self.uses)) {
            self.bytes -= former.bytes();
        }
        while self.bytes > self.most
            && let Some(oldest) = self.revisions.iter().min_by_key(|(_, (_, used))| *used)
        {
            let oldest = oldest.0.clone();
            if let Some((former, _)) = self.revisions.remove(&oldest) {
                self.bytes -= former.bytes();
            }
        }
    }
}

/// The `text` of an input; the other fields are not built.
fn text_of(input: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    #[derive(Deserialize)]
    struct InputText<'a> {
        #[serde(borrow)]
        text: Cow<'a, str>,
    }
    serde_json::from_str(input).map(|InputText { text }| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{AgentSpec, Guard};

    fn agent(revision: i32, patterns: &[&str]) -> Agent {
        let deny = |pattern: &&str| Guard::DenyRegex { pattern: (*pattern).to_owned(), notice: None };
        let guards = patterns.iter().map(deny).collect();
        let spec = AgentSpec { guards, ..AgentSpec::process(vec!["true".to_owned()]) };
        Agent::new("guarded", revision, spec)
    }

    #[test]
    fn guards_are_compiled_once_a_revision() {
        let checks = InputGuards::default();
        let first = checks.compiled(&agent(1, &["a"]));
        assert!(Arc::ptr_eq(&first, &checks.compiled(&agent(1, &["a"]))));
        assert!(!Arc::ptr_eq(&first, &checks.compiled(&agent(2, &["a"]))));
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_used_stays() {
        let checks = InputGuards::default();
        let first = checks.compiled(&agent(0, &["a"]));
        checks.kept.lock().most = 3 * first.bytes();
        for revision in 1..6 {
            checks.compiled(&agent(revision, &["a"]));
            assert!(Arc::ptr_eq(&first, &checks.compiled(&agent(0, &["a"]))), "{revision}");
        }
        let kept = checks.kept.lock();
        assert_eq!((kept.bytes, kept.revisions.len()), (kept.most, 3));
    }

    #[tokio::test]
    async fn an_input_without_a_text_is_stopped() {
        let checks = Arc::new(InputGuards::default());
        assert_eq!(checks.clone().stop(&agent(1, &["x"]), r#"{"text":"a\u0062"}"#.into()).await, None);
        assert!(checks.clone().stop(&agent(2, &["ab"]), r#"{"text":"a\u0062"}"#.into()).await.is_some());
        for input in ["{}", r#"{"text":7}"#, "x"] {
            assert_eq!(checks.clone().stop(&agent(1, &["x"]), input.into()).await.as_deref(), Some(UNUSABLE));
        }
    }
}
