//! Agents: a named way to run workers, as `apply` and the API take it.
//!
//! Owns the spec's fields, defaults and limits. Refuses unknown fields and values out of bounds,
//! naming the field.

mod guard;
mod guards;
mod invalid;
mod pod;
mod stored;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    guard::Guard,
    guards::{GuardFinding, Guards},
    invalid::InvalidSpec,
    pod::{OWN_PREFIX, PodTemplate, PullPolicy, Resources, SecretKey, Toleration, is_label_value},
    stored::{KeptFields, StoredSpec, Unread},
};
use crate::units::{Size, Span};

/// How an agent's workers are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// What kind of worker.
    pub runtime: Runtime,
    /// The program and its arguments; a relative program is looked up in `PATH`. None of a remote worker's:
    /// its host knows what it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The worker's environment, beside a clean minimum.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How workers and conversations belong together.
    #[serde(default)]
    pub scope: Scope,
    /// Turns that one worker serves at once: 64 where the scope is `shared`, else 1 and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub max_concurrent_turns: Option<u32>,
    /// What a fresh process is told of its conversation.
    #[serde(default)]
    pub history: History,
    /// How long an idle worker is kept.
    #[serde(default = "default_idle_ttl")]
    #[schema(value_type = String, example = "10m")]
    pub idle_ttl: Span,
    /// The turn's clocks.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Whether a turn whose worker died may be run again.
    #[serde(default)]
    pub retry: Retry,
    /// Checks of the input, before anything is run.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub guards: Vec<Guard>,
    /// What a worker may use.
    #[serde(default)]
    pub limits: Limits,
    /// Whether clients see operator detail (exit status, the end of stderr) in errors.
    #[serde(default)]
    pub expose_errors: bool,
    /// What each conversation's pod is made from; of the runtime `kubernetes` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodTemplate>,
}

/// What kind of worker runs an agent's turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// A process that speaks the native protocol over stdio.
    Process,
    /// A worker that calls over HTTP.
    Remote,
    /// A pod a conversation, with a worker inside that calls home.
    Kubernetes,
}

impl Runtime {
    /// Whether its workers call over HTTP.
    pub const fn is_called(self) -> bool {
        matches!(self, Runtime::Remote | Runtime::Kubernetes)
    }

    /// The name in SQL, JSON, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Runtime::Process => "process",
            Runtime::Remote => "remote",
            Runtime::Kubernetes => "kubernetes",
        }
    }
}

/// How workers and conversations belong together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One worker a conversation, kept warm.
    #[default]
    Conversation,
    /// One worker, many turns at once, of any conversations.
    Shared,
}

/// Whether a turn whose worker died may be run again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// A turn that reached a worker is never run again.
    #[default]
    Never,
    /// A turn that has said nothing yet may be run again: three attempts at most, and none after two replicas
    /// were lost with it.
    Safe,
}

/// How much of its conversation a fresh process is told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// At most this many turns, the newest.
    pub turns: u32,
    /// At most this many bytes of texts, attachments and questions.
    #[schema(value_type = String, example = "256KiB")]
    pub bytes: Size,
}

impl Default for History {
    fn default() -> Self {
        History { turns: 50, bytes: Size::kib(256) }
    }
}

/// The lengths of a turn's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Head of its conversation's line → claimed.
    #[schema(value_type = String, example = "5m")]
    pub queue: Span,
    /// Claimed → worker ready.
    #[schema(value_type = String, example = "60s")]
    pub startup: Span,
    /// Between two events of the worker.
    #[schema(value_type = String, example = "120s")]
    pub progress: Span,
    /// Question → answer.
    #[schema(value_type = String, example = "15m")]
    pub answer: Span,
    /// First claim → last word.
    #[schema(value_type = String, example = "30m")]
    pub cap: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            queue: Span::seconds(300),
            startup: Span::seconds(60),
            progress: Span::seconds(120),
            answer: Span::seconds(900),
            cap: Span::seconds(1800),
        }
    }
}

/// What a worker may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Resident memory of the worker and all it started.
    #[schema(value_type = String, example = "1GiB")]
    pub memory: Size,
    /// Processes, the worker's own included.
    pub processes: u32,
    /// Text that one turn may send.
    #[schema(value_type = String, example = "4MiB")]
    pub output_bytes: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory: Size::mib(1024), processes: 64, output_bytes: Size::mib(4) }
    }
}

fn default_idle_ttl() -> Span {
    Span::seconds(600)
}

impl AgentSpec {
    /// A process agent with the default of everything else.
    pub fn process(command: Vec<String>) -> Self {
        AgentSpec {
            runtime: Runtime::Process,
            command,
            env: BTreeMap::new(),
            scope: Scope::default(),
            max_concurrent_turns: None,
            history: History::default(),
            idle_ttl: default_idle_ttl(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            guards: Vec::new(),
            limits: Limits::default(),
            expose_errors: false,
            pod: None,
        }
    }

    /// An agent whose workers call, with the default of everything else.
    pub fn remote() -> Self {
        AgentSpec { runtime: Runtime::Remote, ..AgentSpec::process(Vec::new()) }
    }

    /// An agent of one pod a conversation, with the default of everything else.
    pub fn kubernetes(command: Vec<String>, pod: PodTemplate) -> Self {
        AgentSpec { runtime: Runtime::Kubernetes, pod: Some(pod), ..AgentSpec::process(command) }
    }

    /// Turns that one worker serves at once.
    pub fn turns_per_worker(&self) -> u32 {
        match self.scope {
            Scope::Conversation => 1,
            Scope::Shared => self.max_concurrent_turns.unwrap_or(SHARED_TURNS),
        }
    }

    /// Refuses what cannot work, before it is stored. Compiles the guards: not for a task among others.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let refuse = |field, why: &str| Err(InvalidSpec { field, why: why.to_owned() });
        match self.runtime {
            Runtime::Process if self.command.first().is_none_or(String::is_empty) => {
                return refuse("command", "needs a program");
            }
            Runtime::Kubernetes
                if self.command.is_empty() && self.pod.as_ref().is_some_and(|pod| pod.command.is_none()) =>
            {
                return refuse(
                    "command",
                    "needs a program, unless `pod.command` is a worker that calls by itself",
                );
            }
            Runtime::Remote if !self.command.is_empty() => {
                return refuse("command", "is for its host to know: `lastword work … -- COMMAND`");
            }
            Runtime::Process | Runtime::Remote | Runtime::Kubernetes => {}
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return refuse("command", "must not contain a NUL character");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return refuse("env", "needs names without `=` and values without NUL characters");
            }
        }
        match (self.runtime, &self.pod) {
            (Runtime::Kubernetes, None) => return refuse("pod", "is needed by the runtime `kubernetes`"),
            (Runtime::Kubernetes, Some(_)) if self.scope == Scope::Shared => {
                return refuse("scope", "must be `conversation`: each conversation has a pod of its own");
            }
            (Runtime::Kubernetes, Some(pod)) => pod.validate(&self.env)?,
            (_, Some(_)) => return refuse("pod", "is of the runtime `kubernetes` alone"),
            (_, None) => {}
        }
        match (self.scope, self.max_concurrent_turns) {
            (Scope::Conversation, Some(turns)) if turns != 1 => {
                return refuse("max_concurrent_turns", "must be 1, unless `scope` is `shared`");
            }
            (_, Some(turns)) if !(1..=SHARED_TURNS_MAX).contains(&turns) => {
                return refuse("max_concurrent_turns", "must lie between 1 and 10000");
            }
            _ => {}
        }
        let Timeouts { queue, startup, progress, answer, cap } = self.timeouts;
        for (field, span) in [
            ("timeouts.queue", queue),
            ("timeouts.startup", startup),
            ("timeouts.progress", progress),
            ("timeouts.answer", answer),
            ("timeouts.cap", cap),
        ] {
            if span < MIN_TIMEOUT || span > MAX_TIMEOUT {
                return refuse(field, "must lie between 100ms and 7 days");
            }
        }
        // Added to the time of day when a worker falls idle; a sum beyond what an instant can hold panics.
        if self.idle_ttl > MAX_TIMEOUT {
            return refuse("idle_ttl", "must not be longer than 7 days");
        }
        if self.limits.processes == 0 || self.limits.memory < Size::mib(1) || self.limits.output_bytes.0 == 0
        {
            return refuse("limits", "needs at least 1 process, 1MiB of memory and 1 byte of output");
        }
        guards::validate(&self.guards)
    }
}

/// What a shared worker serves at once where its agent does not say: as many as a replica runs by default.
const SHARED_TURNS: u32 = 64;
/// More could not be told apart from no limit.
const SHARED_TURNS_MAX: u32 = 10_000;
const MIN_TIMEOUT: Span = Span(std::time::Duration::from_millis(100));
const MAX_TIMEOUT: Span = Span::seconds(7 * 24 * 3600);

/// Whether `name` can name an agent: 1 to 64 of `a-z 0-9 - _ .`, beginning with a letter or digit.
pub fn is_agent_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests;
