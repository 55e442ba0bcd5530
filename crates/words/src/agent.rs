//! Agents: named specs for running workers, as `apply` and the API accept them.
//!
//! Owns the spec's fields, defaults and limits. Refuses unknown fields and out-of-range values, and names the field.

mod guard;
mod guards;
mod invalid;
mod pod;
mod reader;
mod stored;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    guard::Guard,
    guards::{GuardFinding, Guards},
    invalid::InvalidSpec,
    pod::{OWN_PREFIX, PodTemplate, PullPolicy, Resources, SecretKey, Toleration, is_label_value},
    reader::{READS, reader_min},
    stored::{KeptFields, StoredSpec, Unread},
};
use crate::units::{Size, Span};

/// How an agent's workers are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// The kind of worker.
    pub runtime: Runtime,
    /// The program and its arguments; a relative program is looked up in `PATH`. Empty for remote workers: their host
    /// knows its program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment variables of the worker, added to a minimal environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How workers and conversations are matched.
    #[serde(default)]
    pub scope: Scope,
    /// Turns that one worker serves at the same time: 64 by default if the scope is `shared`, otherwise always 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub max_concurrent_turns: Option<u32>,
    /// What a new process is told of its conversation's history.
    #[serde(default)]
    pub history: History,
    /// How long an idle worker is kept.
    #[serde(default = "default_idle_ttl")]
    #[schema(value_type = String, example = "10m")]
    pub idle_ttl: Span,
    /// The turn's timeouts.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Whether a turn may run again after its worker died.
    #[serde(default)]
    pub retry: Retry,
    /// Checks of the input before anything runs.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub guards: Vec<Guard>,
    /// The resource limits of a worker.
    #[serde(default)]
    pub limits: Limits,
    /// Whether clients see operator detail (exit status, the end of stderr) in errors.
    #[serde(default)]
    pub expose_errors: bool,
    /// The template of each conversation's pod; only for the runtime `kubernetes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodTemplate>,
}

crate::words! {
    /// The kind of worker that runs an agent's turns.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Runtime in "inflight.runtime" {
        /// A process that speaks the native protocol over stdio.
        Process = "process",
        /// A worker that calls the gateway over HTTP.
        Remote = "remote",
        /// One pod per conversation; the worker inside calls the gateway over HTTP.
        Kubernetes = "kubernetes",
    }
}

impl Runtime {
    /// Whether the workers of this runtime call the gateway over HTTP.
    pub const fn is_called(self) -> bool {
        matches!(self, Runtime::Remote | Runtime::Kubernetes)
    }
}

/// How workers and conversations are matched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One worker per conversation, kept warm.
    #[default]
    Conversation,
    /// One worker runs many turns of any conversations at the same time.
    Shared,
}

/// Whether a turn may run again after its worker died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// A turn that reached a worker never runs again.
    #[default]
    Never,
    /// A turn without output may run again: at most three attempts, and none after two replicas were lost while they
    /// ran it.
    Safe,
}

/// How much of its conversation's history a new process is told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// The newest turns, at most this many.
    pub turns: u32,
    /// Texts, attachments and questions, at most this many bytes.
    #[schema(value_type = String, example = "256KiB")]
    pub bytes: Size,
}

impl Default for History {
    fn default() -> Self {
        History { turns: 50, bytes: Size::kib(256) }
    }
}

/// A turn's timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the head of its conversation's queue to the claim.
    #[schema(value_type = String, example = "5m")]
    pub queue: Span,
    /// From the claim until the worker is ready.
    #[schema(value_type = String, example = "60s")]
    pub startup: Span,
    /// Between two events of the worker.
    #[schema(value_type = String, example = "120s")]
    pub progress: Span,
    /// From a question to its answer.
    #[schema(value_type = String, example = "15m")]
    pub answer: Span,
    /// From the first claim to the last word.
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

/// The resource limits of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Resident memory of the worker and of all processes that it started.
    #[schema(value_type = String, example = "1GiB")]
    pub memory: Size,
    /// Processes, including the worker itself.
    pub processes: u32,
    /// Text that the worker may send for one turn.
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
    /// A process agent with defaults for all other fields.
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

    /// A remote agent with defaults for all other fields.
    pub fn remote() -> Self {
        AgentSpec { runtime: Runtime::Remote, ..AgentSpec::process(Vec::new()) }
    }

    /// Turns that one worker serves at the same time.
    pub fn turns_per_worker(&self) -> u32 {
        match self.scope {
            Scope::Conversation => 1,
            Scope::Shared => self.max_concurrent_turns.unwrap_or(SHARED_TURNS),
        }
    }

    /// Refuses a spec that cannot work, before the spec is stored. Compiles the guards, so call this on a blocking
    /// thread.
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
                    "needs a program, unless `pod.command` is a worker that calls the gateway itself",
                );
            }
            Runtime::Remote if !self.command.is_empty() => {
                return refuse(
                    "command",
                    "must not be set for `remote`: the command is given to `lastword work … -- COMMAND`",
                );
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
            (_, Some(_)) => return refuse("pod", "is allowed with the runtime `kubernetes` only"),
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
        // Added to an instant when a worker becomes idle; a sum out of an instant's range would panic.
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

/// Turns per shared worker by default: as many as a replica runs by default.
const SHARED_TURNS: u32 = 64;
/// A larger value would mean no limit.
const SHARED_TURNS_MAX: u32 = 10_000;
const MIN_TIMEOUT: Span = Span(std::time::Duration::from_millis(100));
const MAX_TIMEOUT: Span = Span::seconds(7 * 24 * 3600);

/// Whether `name` can name an agent: 1 to 64 characters of `a-z 0-9 - _ .`, starting with a letter or digit.
pub fn is_agent_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests;
