//! The verdict: what a pod's status means for its worker. Pure.
//!
//! Owns which of Kubernetes' reasons end a worker, and the words for the person who waits: no image names, no
//! nodes, no paths in them (those go to operators as [`Ending::detail`]). Refuses to guess at what it does not
//! know: a reason that is not in the table below leaves the pod waiting, and the turn's startup clock decides.
//!
//! ```text
//! waiting ──► running ──► leaving ──► ended
//!    └───────────┴──────────┴───────────┘
//! ```
//! What ends the whole pod (eviction, its deadline, a lost node) is named before the exit code that it led to.

use std::fmt;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use nix::sys::signal::Signal;

/// The container that holds the worker. Others, which a mesh may have put beside it, do not count.
pub const WORKER: &str = "worker";

/// How a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodStanding {
    /// Its worker does not run yet.
    Waiting(Wait),
    /// Its worker runs. That it is ready, it says itself.
    Running,
    /// It was told to end by somebody; what its worker has in hand it may finish.
    Leaving(Ending),
    /// Its worker is gone, or will never be there.
    Ended(Ending),
}

/// What a pod waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Whatever comes first: a look of the scheduler, an image, a start.
    Start,
    /// A node with room: there is none now.
    Node(Ending),
}

/// Why a worker is gone, or will never be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why, in the words of the last word.
    pub cause: Cause,
    /// What Kubernetes says, for operators.
    pub detail: String,
}

/// Why a worker is gone, or will never be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No node has room, or none fits.
    Unschedulable,
    /// Its image cannot be had.
    Image,
    /// Its pod names something that is missing or wrong: a Secret, a key, a user.
    Config,
    /// Its program cannot be started.
    Program,
    /// Its node refused it.
    Refused,
    /// It took more memory than it may.
    OutOfMemory {
        /// What it may take, where that is known.
        limit: Option<String>,
    },
    /// Its node took it off: too little memory, disk or processes there.
    Evicted,
    /// A more important pod took its place.
    Preempted,
    /// Its node was shut down or drained.
    NodeStopped,
    /// Its node is gone.
    NodeLost,
    /// It lived for longer than a pod may.
    Deadline,
    /// Somebody deleted it.
    Deleted,
    /// It ended by itself.
    Exit(i32),
}

impl Cause {
    /// A short name, for metrics and tests.
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

/// As it stands in brackets behind "stopped unexpectedly" or "could not be started".
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

    /// A pod that is not there any more, and of whose end nothing else was seen.
    pub fn deleted() -> Self {
        Ending::new(Cause::Deleted, "the pod is gone", None)
    }
}

/// What this pod's status means for its worker.
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
            // Its containers are not listed, or not ended: only the pod as a whole tells.
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

/// What ended the whole pod, by the reason that stands on it.
fn ended_as_a_whole(status: &PodStatus) -> Option<Ending> {
    let reason = status.reason.as_deref()?;
    let cause = match reason {
        "Evicted" => Cause::Evicted,
        "DeadlineExceeded" => Cause::Deadline,
        "NodeLost" => Cause::NodeLost,
        "Preempting" | "Preempted" => Cause::Preempted,
        "NodeShutdown" | "Shutdown" | "Terminated" => Cause::NodeStopped,
        // What a node says to a pod that it cannot have.
        "NodeAffinity" | "NodePorts" | "NodeName" | "UnexpectedAdmissionError" | "AdmissionFailed" => {
            Cause::Refused
        }
        out_of if out_of.starts_with("OutOf") => Cause::Refused,
        _ => return None,
    };
    Some(Ending::new(cause, reason, status.message.as_deref()))
}

/// A worker that a signal ended while its pod was being deleted did not end by itself.
fn on_request(ending: Ending) -> Ending {
    match ending.cause {
        Cause::Exit(code) if code > 128 => Ending { cause: Cause::Deleted, ..ending },
        _ => ending,
    }
}

/// Who took the pod off, where the cluster says so.
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

/// Why there is no node for the pod.
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

/// Waits that no time ends, as far as a turn can wait.
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

/// A container that had to end well before the worker could start, and did not.
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
