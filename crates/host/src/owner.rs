//! What the host needs from its program, and from each turn.

use std::{fmt, future::Future, time::Duration};

use super::{
    link::ProcessLink,
    process::{Exit, Launch, NotReady, Process, lapsed},
};
use crate::{descriptors::Lack, task::Supervisor};
use lastword_words::{
    failure::Code,
    id::{ConversationId, TurnId, WorkerId},
    turn::CancelledBy,
    word::Open,
};

/// The counter of messages that arrive after their turn's end.
pub const LATE_OUTPUT: &str = "lastword_late_output_total";

/// A turn for a worker of this host. Dropping it frees its resources.
pub trait HostedTurn: fmt::Debug + Send + 'static {
    /// What a turn and its conversation's worker must agree on.
    type Fit: fmt::Debug + Send + 'static;

    /// The turn's id.
    fn id(&self) -> TurnId;

    /// The turn's conversation.
    fn conversation(&self) -> ConversationId;

    /// Name and revision of the turn's agent.
    fn agent(&self) -> (&str, i32);

    /// Whether the agent's workers serve many turns at once.
    fn is_shared(&self) -> bool;

    /// The span of the turn's log lines.
    fn span(&self) -> tracing::Span;

    /// How long a worker stays idle after this turn.
    fn idle_ttl(&self) -> Duration;

    /// What a worker serves once it is given this turn.
    fn fit(&self) -> Self::Fit;

    /// Whether a worker that serves `fit` can take this turn.
    fn fits(&self, fit: &Self::Fit) -> bool;

    /// The only worker that may take this turn, if the claim chose one.
    fn bound_to(&self) -> Option<WorkerId> {
        None
    }

    /// Whether a start that fails for lack of resources is retried here: no other host could run the turn.
    fn must_start_here(&self) -> bool;

    /// Waits until the turn no longer needs its worker: a deadline, a cancel or a halt. Cancel-safe.
    fn called_off(&mut self) -> impl Future<Output = Obstacle> + Send;
}

/// The program that a host runs workers for.
pub trait HostOwner: fmt::Debug + Send + Sync + Sized + 'static {
    /// The program's kind of turn.
    type Turn: HostedTurn;

    /// Spawns the host's tasks.
    fn supervisor(&self) -> &Supervisor;

    /// A fresh id for a worker.
    fn mint(&self) -> WorkerId;

    /// The program to start for turns like this one.
    fn program(&self, turn: &Self::Turn) -> Program;

    /// Runs a turn to its end on a ready worker. Returns the worker's fate.
    fn run<L: ProcessLink>(&self, turn: &mut Self::Turn, link: &mut L) -> impl Future<Output = Fate> + Send;

    /// Ends a turn that was not started. `process`: the worker's process, if its program ran.
    fn not_started(
        &self,
        turn: Self::Turn,
        why: Obstacle,
        process: Option<&Process>,
    ) -> impl Future<Output = ()> + Send;

    /// Called if the only worker that may take this turn has ended before it received anything of it.
    fn forsaken(&self, turn: Self::Turn) -> impl Future<Output = ()> + Send;

    /// Called when a worker's program runs.
    fn note_started(&self, started: Started<'_>) -> impl Future<Output = ()> + Send;

    /// Called when the worker can take turns.
    fn note_ready(&self, worker: WorkerId) -> impl Future<Output = ()> + Send;

    /// Called when the worker and its whole process tree are gone. `stderr`: the end of its log.
    fn note_ended(&self, worker: WorkerId, exit: Exit, stderr: String) -> impl Future<Output = ()> + Send;

    /// Called when a worker falls idle or a process ends: a waiting turn may use the capacity.
    fn note_room(&self) {}
}

/// A started worker, as operators see it.
#[derive(Debug, Clone, Copy)]
pub struct Started<'a> {
    /// The worker's id.
    pub worker: WorkerId,
    /// The agent's name.
    pub agent: &'a str,
    /// The agent's revision.
    pub revision: i32,
    /// The conversation, or `None` for a shared worker.
    pub conversation: Option<ConversationId>,
    /// The worker's process id.
    pub pid: i32,
}

/// The program of an agent, and how its workers are used.
#[derive(Debug, Clone)]
pub struct Program {
    /// The agent's name.
    pub agent: String,
    /// The agent's revision.
    pub revision: i32,
    /// Command, environment and limits of the process.
    pub launch: Launch,
    /// Turns that one worker serves at once.
    pub turns: usize,
    /// Time limit from the start to `ready`.
    pub startup: Duration,
    /// How long a shared worker stays without a turn.
    pub idle_ttl: Duration,
    /// Whether input must pass guards before a worker receives it.
    pub is_guarded: bool,
}

/// What becomes of a worker after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The worker may serve the next turn.
    Keep,
    /// The worker must end.
    End,
}

/// Why a turn must end here although its worker is fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// Another replica holds the turn: nothing may be written (I5).
    Lost,
    /// A drain reached its deadline.
    Interrupted,
    /// The turn's remote worker now calls another replica, which holds the turn.
    Moved,
}

/// Why a turn was not started.
#[derive(Debug)]
pub enum Obstacle {
    /// No worker could be started.
    Failed {
        /// For clients.
        message: String,
        /// For operators.
        detail: Option<String>,
    },
    /// This machine lacks a resource that every worker start needs. Another machine may have enough.
    Lacks {
        /// The resource.
        lack: Lack,
        /// For operators.
        detail: String,
    },
    /// The startup clock lapsed.
    Lapsed,
    /// The turn was cancelled; names the canceller.
    Cancelled(Open<CancelledBy>),
    /// The turn must end here.
    Halted(Halt),
}

impl Obstacle {
    /// A failure with this message.
    pub fn failed(message: &str) -> Obstacle {
        Obstacle::Failed { message: message.to_owned(), detail: None }
    }

    /// Turns a lapse into a failure with a message. `process`: the worker's process, if its program runs.
    #[must_use]
    pub fn told(self, process: Option<&Process>) -> Obstacle {
        match (self, process) {
            (Obstacle::Lapsed, Some(process)) => lapsed(process).into(),
            (Obstacle::Lapsed, None) => Obstacle::failed(Code::WorkerStartupFailed.message()),
            (other, _) => other,
        }
    }
}

impl From<NotReady> for Obstacle {
    fn from(NotReady { message, detail }: NotReady) -> Self {
        Obstacle::Failed { message, detail }
    }
}

/// Runs a step that a turn waits for, unless the turn is called off first.
///
/// # Errors
/// The step's failure, or why the turn was called off.
pub async fn unless_called_off<T>(
    turn: &mut impl HostedTurn,
    step: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::select! {
        done = step => done,
        why = turn.called_off() => Err(why),
    }
}
