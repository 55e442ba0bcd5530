//! What a host of workers asks of the program that it is part of, and of each turn.

use std::{fmt, future::Future, time::Duration};

use super::{
    link::ProcessLink,
    process::{Exit, Launch, NotReady, Process, lapsed},
};
use crate::{descriptors::Lack, task::Supervisor};
use lastword_words::{
    failure::Code,
    id::{ConversationId, TurnId, WorkerId},
};

/// The name of the counter for what workers say after a turn's end.
pub const LATE_OUTPUT: &str = "lastword_late_output_total";

/// One turn that a worker of this host is to run. Its drop frees what it holds.
pub trait HostedTurn: fmt::Debug + Send + 'static {
    /// What a turn and its conversation's worker must agree on.
    type Fit: fmt::Debug + Send + 'static;

    /// The turn's id.
    fn id(&self) -> TurnId;

    /// Its conversation.
    fn conversation(&self) -> ConversationId;

    /// Its agent's name, and the revision.
    fn agent(&self) -> (&str, i32);

    /// Whether its workers serve many turns at once.
    fn is_shared(&self) -> bool;

    /// The span that its log lines belong to.
    fn span(&self) -> tracing::Span;

    /// How long a worker that served it stays without another turn.
    fn idle_ttl(&self) -> Duration;

    /// What a worker that is given this turn serves from then on.
    fn fit(&self) -> Self::Fit;

    /// Whether a worker that serves `fit` may have this turn.
    fn fits(&self, fit: &Self::Fit) -> bool;

    /// The only worker that may have this turn, where there is such a one.
    fn bound_to(&self) -> Option<WorkerId> {
        None
    }

    /// Whether a start that failed for want of something on this machine is tried again here: nobody else could.
    fn must_start_here(&self) -> bool;

    /// Until the turn need not wait for its worker any more: a clock, a cancel, a halt. Cancel-safe.
    fn called_off(&mut self) -> impl Future<Output = Obstacle> + Send;
}

/// The program whose workers a host runs.
pub trait HostOwner: fmt::Debug + Send + Sync + Sized + 'static {
    /// What the workers run.
    type Turn: HostedTurn;

    /// Starts the host's tasks.
    fn supervisor(&self) -> &Supervisor;

    /// A new worker's id.
    fn mint(&self) -> WorkerId;

    /// What to start for turns like this one.
    fn program(&self, turn: &Self::Turn) -> Program;

    /// Runs a turn on its worker, which is ready, to the turn's end. What becomes of the worker.
    fn run<L: ProcessLink>(&self, turn: &mut Self::Turn, link: &mut L) -> impl Future<Output = Fate> + Send;

    /// Tells that the turn was not started; `process` is there where its program ran.
    fn not_started(
        &self,
        turn: Self::Turn,
        why: Obstacle,
        process: Option<&Process>,
    ) -> impl Future<Output = ()> + Send;

    /// The only worker that may have this turn has ended, and has received nothing of it.
    fn forsaken(&self, turn: Self::Turn) -> impl Future<Output = ()> + Send;

    /// A worker's program runs.
    fn note_started(&self, started: Started<'_>) -> impl Future<Output = ()> + Send;

    /// The worker can take turns.
    fn note_ready(&self, worker: WorkerId) -> impl Future<Output = ()> + Send;

    /// The worker and all that it started are gone. `stderr`: the end of its log.
    fn note_ended(&self, worker: WorkerId, exit: Exit, stderr: String) -> impl Future<Output = ()> + Send;

    /// A worker fell idle, or a process ended: a turn that waits for room may have it.
    fn note_room(&self) {}
}

/// A worker's program runs: what operators see of it.
#[derive(Debug, Clone, Copy)]
pub struct Started<'a> {
    /// The worker.
    pub worker: WorkerId,
    /// Its agent's name.
    pub agent: &'a str,
    /// The agent's revision.
    pub revision: i32,
    /// The conversation that it serves alone; `None` for a shared worker.
    pub conversation: Option<ConversationId>,
    /// Its process id.
    pub pid: i32,
}

/// What to start for an agent's turns, and how the worker is used.
#[derive(Debug, Clone)]
pub struct Program {
    /// The agent's name.
    pub agent: String,
    /// The agent's revision.
    pub revision: i32,
    /// The process.
    pub launch: Launch,
    /// Turns at once.
    pub turns: usize,
    /// From the start to `ready`.
    pub startup: Duration,
    /// How long a shared worker stays without a turn.
    pub idle_ttl: Duration,
    /// Whether an input is checked before a worker may have it.
    pub is_guarded: bool,
}

/// What becomes of a worker after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It may serve the next one.
    Keep,
    /// It must not.
    End,
}

/// Why a turn must end here although its worker is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// Somebody else holds it: nothing may be written (I5).
    Lost,
    /// A drain is over.
    Interrupted,
    /// Its remote worker calls another replica, which holds it now.
    Moved,
}

/// Why a turn was not started.
#[derive(Debug)]
pub enum Obstacle {
    /// No worker came to be.
    Failed {
        /// For a person.
        message: String,
        /// For operators.
        detail: Option<String>,
    },
    /// This machine lacks what the start of any worker takes: another one may have it.
    Lacks {
        /// What.
        lack: Lack,
        /// For operators.
        detail: String,
    },
    /// The startup clock.
    Lapsed,
    /// By this canceller.
    Cancelled(String),
    /// It must end here.
    Halted(Halt),
}

impl Obstacle {
    /// A failure in these words.
    pub fn failed(message: &str) -> Obstacle {
        Obstacle::Failed { message: message.to_owned(), detail: None }
    }

    /// The same obstacle, with a lapse told in words: `process` is there where the program runs.
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

/// A step that a turn waits for, unless the turn is called off.
///
/// # Errors
/// What the step failed with, or why the turn was called off.
pub async fn unless_called_off<T>(
    turn: &mut impl HostedTurn,
    step: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::select! {
        done = step => done,
        why = turn.called_off() => Err(why),
    }
}
