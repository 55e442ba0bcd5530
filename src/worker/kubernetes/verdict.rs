//! The verdict: what a pod's status means for its worker. Pure.
//!
//! Owns which Kubernetes reasons end a worker, and their wording for clients: no image names, nodes or paths,
//! which go to operators as [`Ending::detail`]. An unknown reason decides nothing: the pod counts as waiting until
//! the turn's startup clock lapses.
//!
//! ```text
//! waiting ──► running ──► leaving ──► ended
//!    └───────────┴──────────┴───────────┘
//! ```
//!
//! A reason for the whole pod (eviction, its deadline, a lost node) comes before the exit code that it led to.

use std::fmt;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use nix::sys::signal::Signal;

/// The worker's container. Other containers, such as a service mesh's, do not count.
pub const WORKER: &str = "worker";

/// A pod's phase, from the worker's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodStanding {
    /// The worker does not run yet.
    Waiting(Wait),
    /// The worker's process runs; whether it is ready, the worker itself reports.
    Running,
    /// The pod is being deleted; the worker may finish its turn.
    Leaving(Ending),
    /// The worker is gone, or will never start.
    Ended(Ending),
}

/// What a pod waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// The scheduler, an image, a start.
    Start,
    /// No node has room now.
    Node(Ending),
}

/// Why a worker is gone or will never start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The cause, as the last word names it.
    pub cause: Cause,
    /// Kubernetes' own words, for operators.
    pub detail: String,
}

/// The cause of a worker's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No node has room or fits.
    Unschedulable,
    /// The image cannot be pulled.
    Image,
    /// The pod names something missing or invalid: a Secret, a key, a user.
    Config,
    /// The program cannot be started.
    Program,
    /// The node refused the pod.
    Refused,
    /// The worker exceeded its memory limit.
    OutOfMemory {
        /// The limit as a Kubernetes quantity, if known.
        limit: Option<String>,
    },
    /// Evicted: the node ran out of memory, disk or processes.
    Evicted,
    /// Preempted by a pod of higher priority.
    Preempted,
    /// The node was shut down or drained.
    NodeStopped,
    /// The node is gone.
    NodeLost,
    /// The pod exceeded its deadline.
    Deadline,
    /// The pod was deleted.
    Deleted,
    /// The worker exited with this code; 128 + n for signal n.
    Exit(i32),
}

impl Cause {
    /// The name in metrics and tests.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Cause::Unschedulable => "unschedulable",
            Cause::Image => "image",
            Cause::Config => "config",
            Cause::Program => "program",
            Cause::Refused => "refused",
            Cause::OutOfMemory { .. } => "oom",
            Cause::Evicted => "evicted",
            Cause::Preempted => "preempted",
            Cause::NodeStopped => "node_stopped",
            Cause::NodeLost => "node_lost",
            Cause::Deadline => "deadline",
            Cause::Deleted => "deleted",
            Cause::Exit(_) => "exit",
        }
    }
}

/// The reason in brackets after "stopped unexpectedly" or "could not be started".
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Unschedulable => "no machine has room for it",
            Cause::Image => "its image could not be pulled",
            Cause::Config => "its configuration is incomplete",
            Cause::Program => "its program could not be run",
            Cause::Refused => "its machine refused it",
            Cause::OutOfMemory { limit: Some(limit) } => return write!(f, "out of memory, limit {limit}"),
            Cause::OutOfMemory { limit: None } => "out of memory",
            Cause::Evicted => "evicted from its machine, which ran short of resources",
            Cause::Preempted => "evicted for something more important",
            Cause::NodeStopped => "its machine was shut down",
            Cause::NodeLost => "its machine was lost",
            Cause::Deadline => "it ran for longer than its pod may",
            Cause::Deleted => "its pod was deleted",
            Cause::Exit(code) => {
                return match Signal::try_from(code - 128) {
                    Ok(signal) if *code > 128 => write!(f, "exit code {code}, signal {signal}"),
                    _ => write!(f, "exit code {code}"),
                };
            }
        })
    }
}

impl Ending {
    fn new(cause: Cause, reason: &str, message: Option<&str>) -> Self {
        let detail = match message.map(str::trim).filter(|message| !message.is_empty()) {
            Some(message) if reason.is_empty() => message.to_owned(),
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        };
        Ending { cause, detail }
    }

    /// The end of a pod that vanished without a known cause.
    pub fn deleted() -> Self {
        Ending::new(Cause::Deleted, "the pod is gone", None)
    }
}

/// What a pod's status means for its worker.
pub fn standing(pod: &Pod) -> PodStanding {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    if let Some(ending) = ended_as_a_whole(status) {
        return PodStanding::Ended(ending);
    }
    let worker = status.container_statuses.iter().flatten().find(|container| container.name == WORKER);
    if let Some(ending) = worker.and_then(|worker| ended(worker, memory_limit(pod))) {
        let ending = if pod.metadata.deletion_timestamp.is_some() { on_request(ending) } else { ending };
        return PodStanding::Ended(why_disrupted(status).unwrap_or(ending));
    }
    if let Some(ending) = status.init_container_statuses.iter().flatten().find_map(init_failed) {
        return PodStanding::Ended(ending);
    }
    match status.phase.as_deref() {
        Some("Failed" | "Succeeded") => {
            // The containers are not listed or not terminated, so only the pod's status tells.
            let reason = status.reason.as_deref().unwrap_or("the pod ended");
            let ending = Ending::new(Cause::Refused, reason, status.message.as_deref());
            return PodStanding::Ended(why_disrupted(status).unwrap_or(ending));
        }
        Some("Unknown") => {
            return PodStanding::Ended(Ending::new(Cause::NodeLost, "Unknown", status.message.as_deref()));
        }
        _ => {}
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return PodStanding::Leaving(why_disrupted(status).unwrap_or_else(Ending::deleted));
    }
    if worker.and_then(|worker| worker.state.as_ref()).is_some_and(|state| state.running.is_some()) {
        return PodStanding::Running;
    }
    PodStanding::Waiting(without_node(status).map_or(Wait::Start, Wait::Node))
}

/// The cause that a reason on the whole pod names.
fn ended_as_a_whole(status: &PodStatus) -> Option<Ending> {
    let reason = status.reason.as_deref()?;
    let cause = match reason {
        "Evicted" => Cause::Evicted,
        "DeadlineExceeded" => Cause::Deadline,
        "NodeLost" => Cause::NodeLost,
        "Preempting" | "Preempted" => Cause::Preempted,
        "NodeShutdown" | "Shutdown" | "Terminated" => Cause::NodeStopped,
        // A node's refusals of a pod.
        "NodeAffinity" | "NodePorts" | "NodeName" | "UnexpectedAdmissionError" | "AdmissionFailed" => {
            Cause::Refused
        }
        out_of if out_of.starts_with("OutOf") => Cause::Refused,
        _ => return None,
    };
    Some(Ending::new(cause, reason, status.message.as_deref()))
}

/// A signal during the pod's deletion is part of the deletion, not an exit.
fn on_request(ending: Ending) -> Ending {
    match ending.cause {
        Cause::Exit(code) if code > 128 => Ending { cause: Cause::Deleted, ..ending },
        _ => ending,
    }
}

/// The cluster's own reason for taking the pod off, if given.
fn why_disrupted(status: &PodStatus) -> Option<Ending> {
    let conditions = status.conditions.iter().flatten();
    let target = conditions.into_iter().find(|it| it.type_ == "DisruptionTarget" && it.status == "True")?;
    let reason = target.reason.as_deref().unwrap_or_default();
    let cause = match reason {
        "PreemptionByScheduler" => Cause::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => Cause::NodeLost,
        "EvictionByEvictionAPI" => Cause::NodeStopped,
        "TerminationByKubelet" => Cause::Evicted,
        _ => return None,
    };
    Some(Ending::new(cause, reason, target.message.as_deref()))
}

/// The reason why no node takes the pod, if so.
fn without_node(status: &PodStatus) -> Option<Ending> {
    let conditions = status.conditions.iter().flatten();
    let scheduled = conditions.into_iter().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    let reason = scheduled.reason.as_deref().filter(|reason| *reason == "Unschedulable")?;
    Some(Ending::new(Cause::Unschedulable, reason, scheduled.message.as_deref()))
}

/// How the worker ended, or why it will never start.
fn ended(worker: &ContainerStatus, memory: Option<String>) -> Option<Ending> {
    let state = worker.state.as_ref()?;
    if let Some(end) = &state.terminated {
        return Some(Ending::new(
            cause_of(end, memory),
            end.reason.as_deref().unwrap_or_default(),
            end.message.as_deref(),
        ));
    }
    never_starts(state)
}

fn cause_of(end: &ContainerStateTerminated, memory: Option<String>) -> Cause {
    match end.reason.as_deref() {
        Some("OOMKilled") => Cause::OutOfMemory { limit: memory },
        Some("ContainerCannotRun" | "StartError") => Cause::Program,
        Some("ContainerStatusUnknown") => Cause::NodeLost,
        Some("DeadlineExceeded") => Cause::Deadline,
        _ => {
            Cause::Exit(end.signal.filter(|signal| *signal > 0).map_or(end.exit_code, |signal| 128 + signal))
        }
    }
}

/// Waiting reasons that do not pass within a turn's startup clock.
fn never_starts(state: &ContainerState) -> Option<Ending> {
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let cause = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Cause::Image,
        "CreateContainerConfigError" => Cause::Config,
        "CreateContainerError"
        | "RunContainerError"
        | "CrashLoopBackOff"
        | "PreStartHookError"
        | "PostStartHookError" => Cause::Program,
        _ => return None,
    };
    Some(Ending::new(cause, reason, waiting.message.as_deref()))
}

/// The end of an init container that failed, or will never start.
fn init_failed(container: &ContainerStatus) -> Option<Ending> {
    let state = container.state.as_ref()?;
    match &state.terminated {
        Some(end) if end.exit_code != 0 => {
            let reason = format!("container {}, exit code {}", container.name, end.exit_code);
            Some(Ending::new(Cause::Config, &reason, end.message.as_deref()))
        }
        _ => never_starts(state),
    }
}

fn memory_limit(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    let worker = containers.iter().find(|container| container.name == WORKER)?;
    Some(worker.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

#[cfg(test)]
mod tests;
