//! A worker's start, for the turn that needs it: from a program to one that said `ready`.
//!
//! Keeps I10's first half: while this goes on the turn is `starting`, no worker has received it,
//! and its end is `worker_startup_failed`, a cancel, or a way back to the queue.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    begin::give_back,
    clocks::Lapse,
    ending::{Account, UNKNOWN_CANCELLER, cancelled, speak},
    host::Host,
    job::{Call, Halt, Job},
    life::{Worker, record},
    process::{Launch, Process, StartError},
    ready::{self, NotReady},
    slots::Slot,
};
use crate::{
    descriptors::{self, Lack},
    failure::Code,
    id::{ConversationId, WorkerId},
    store::{commands::Order, turns::Agent, warn_of, workers::NewWorker},
};

/// As often a turn may be claimed, its first time included (`lw_may_rerun_v1`).
pub(super) const ATTEMPTS_MAX: i32 = 3;
/// Between two tries of a start where there is nobody to leave it to.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// How a start went.
pub(super) enum Started {
    /// The worker is ready for its turn.
    Ready(Box<Worker>, Box<Job>),
    /// The turn has ended, or is not ours any more; so has the worker.
    Over,
}

/// Why a start led nowhere.
#[derive(Debug)]
pub(super) enum Obstacle {
    Failed {
        message: String,
        detail: Option<String>,
    },
    /// This replica lacks what the start of any worker takes: another one may have it.
    Lacks {
        lack: Lack,
        detail: String,
    },
    /// The startup clock.
    Lapsed,
    Cancelled(String),
    Halted(Halt),
}

impl Obstacle {
    /// The same, and what a lapse means: `process` is there where the program runs.
    pub(super) fn told(self, process: Option<&Process>) -> Obstacle {
        match (self, process) {
            (Obstacle::Lapsed, Some(process)) => ready::lapsed(process).into(),
            (Obstacle::Lapsed, None) => failed(Code::WorkerStartupFailed.message()),
            (other, _) => other,
        }
    }
}

impl From<NotReady> for Obstacle {
    fn from(NotReady { message, detail }: NotReady) -> Self {
        Obstacle::Failed { message, detail }
    }
}

/// Starts a worker for `job`'s turn and waits until it is ready, within the startup clock.
pub(super) async fn start(host: &Host, id: WorkerId, mut job: Job) -> Started {
    let conversation = job.claim.conversation;
    let (slot, mut process) = loop {
        let launching = launch(host, &job.agent, Some(conversation));
        match unless_interrupted(&mut job, launching).await {
            Ok(launched) => break launched,
            // Given back it could not be claimed again.
            Err(Obstacle::Lacks { lack, detail }) if job.claim.epoch >= ATTEMPTS_MAX => {
                tracing::warn!(
                    lack = lack.as_str(),
                    detail,
                    "tried again here, since it was tried elsewhere"
                );
                if let Err(obstacle) = unless_interrupted(&mut job, pause()).await {
                    tell(host, &job, obstacle, None).await;
                    return Started::Over;
                }
            }
            Err(obstacle) => {
                tell(host, &job, obstacle, None).await;
                return Started::Over;
            }
        }
    };
    host.note_process(conversation, id, process.renewer());
    note_started(host, id, &job.agent, Some(conversation), &process).await;
    match unless_interrupted(&mut job, ready(&mut process)).await {
        Ok(()) => {
            note_ready(host, id).await;
            let worker = Worker { id, process, slot, conversation, last_turn: None };
            Started::Ready(Box::new(worker), Box::new(job))
        }
        Err(obstacle) => {
            slot.leave();
            tell(host, &job, obstacle, Some(&process)).await;
            process.kill();
            let exit = process.ended().await;
            record(host, id, &process, exit).await;
            Started::Over
        }
    }
}

/// A step of a start, unless something comes between.
pub(super) async fn unless_interrupted<T>(
    job: &mut Job,
    step: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::pin!(step);
    loop {
        tokio::select! {
            done = &mut step => return done,
            why = interrupted(job) => if let Some(obstacle) = why { return Err(obstacle) },
        }
    }
}

/// Starts the agent's program, for a conversation or, without one, to be shared, once there is a slot for it.
/// Dropping the future leaves nothing behind.
pub(super) fn launch(
    host: &Host,
    agent: &Agent,
    conversation: Option<ConversationId>,
) -> impl Future<Output = Result<(Slot, Process), Obstacle>> + use<> {
    let spec = &agent.spec;
    let launch = host.launch(spec.command.clone(), host.workspace(&agent.name, conversation));
    let mut env = launch.env;
    env.extend(spec.env.clone());
    env.insert("LASTWORD_AGENT".to_owned(), agent.name.clone());
    if let Some(conversation) = conversation {
        env.insert("LASTWORD_CONVERSATION_ID".to_owned(), conversation.to_string());
    }
    let launch = Launch {
        env,
        memory: spec.limits.memory,
        processes: spec.limits.processes,
        // Room for a `turn` and a `cancel` of each: many may begin at the same moment.
        unread_max: launch.unread_max + 2 * spec.turns_per_worker() as usize,
        ..launch
    };
    let host = host.clone();
    async move {
        let slot = host.slot().await;
        let process = Process::start(host.supervisor(), launch).await.map_err(refused)?;
        descriptors::started();
        Ok((slot, process))
    }
}

/// What may come between while a worker starts: a clock, an order, a halt. `None`: go on.
async fn interrupted(job: &mut Job) -> Option<Obstacle> {
    let (at, lapse) = job.clocks.next();
    tokio::select! {
        () = sleep_until(at) => Some(match lapse {
            Lapse::Fails(Code::TurnTimeout) => failed(Code::TurnTimeout.message()),
            Lapse::Fails(_) => Obstacle::Lapsed,
            Lapse::Cancels => Obstacle::Cancelled(UNKNOWN_CANCELLER.as_str().to_owned()),
        }),
        call = job.reach.call() => match call {
            Call::Halt(halt) => Some(Obstacle::Halted(halt)),
            Call::Order(command) => match command.order {
                Order::Cancel { by } => Some(Obstacle::Cancelled(by)),
                // It has asked nothing yet.
                Order::Answer { .. } => None,
            },
        },
    }
}

/// Waits for the worker's `ready`.
pub(super) async fn ready(process: &mut Process) -> Result<(), Obstacle> {
    Ok(ready::until_ready(process).await?)
}

pub(super) fn failed(message: &str) -> Obstacle {
    Obstacle::Failed { message: message.to_owned(), detail: None }
}

fn refused(why: StartError) -> Obstacle {
    match why.lack {
        Some(lack) => {
            // Before the turn is in the queue again: it is not for this replica.
            descriptors::lacked(lack);
            Obstacle::Lacks { lack, detail: why.detail }
        }
        None => Obstacle::Failed { message: why.message.to_owned(), detail: Some(why.detail) },
    }
}

/// Lets a moment pass in which something may come free.
pub(super) async fn pause() -> Result<(), Obstacle> {
    tokio::time::sleep(TRY_AGAIN).await;
    Ok(())
}

/// Tells the client, unless there is nothing for this host to tell.
pub(super) async fn tell(host: &Host, job: &Job, obstacle: Obstacle, process: Option<&Process>) {
    let claim = &job.claim;
    let word = match obstacle.told(process) {
        Obstacle::Halted(Halt::Lost | Halt::Moved) => return,
        Obstacle::Halted(Halt::Interrupted) => return give_back(host, claim, "drain").await,
        Obstacle::Lacks { lack, detail } => {
            tracing::warn!(lack = lack.as_str(), detail, "no worker can be started here; given back");
            return give_back(host, claim, "lack").await;
        }
        Obstacle::Cancelled(by) => cancelled(&by),
        Obstacle::Lapsed => return,
        Obstacle::Failed { message, detail } => {
            let is_capped = job.clocks.cap_left(Instant::now()).is_zero();
            let code = if is_capped { Code::TurnTimeout } else { Code::WorkerStartupFailed };
            let tail = process.map(Process::stderr_tail).filter(|tail| !tail.is_empty());
            Account::unstarted(claim, Some(job)).failure(code, &message, detail.or(tail))
        }
    };
    speak(host, claim, claim.last_seq, word).await;
}

/// Records a worker whose program runs, for operators.
pub(super) async fn note_started(
    host: &Host,
    id: WorkerId,
    agent: &Agent,
    conversation: Option<ConversationId>,
    process: &Process,
) {
    tracing::info!(pid = process.pid(), "worker started");
    let new = NewWorker {
        id,
        agent: agent.name.clone(),
        agent_revision: agent.revision,
        runtime: agent.spec.runtime.as_str(),
        conversation,
        pid: process.pid(),
    };
    if let Err(why) = host.store().worker_started(&new).await {
        warn_of!(why, "a worker's start was not recorded");
    }
}

/// Records that it can take turns.
pub(super) async fn note_ready(host: &Host, id: WorkerId) {
    if let Err(why) = host.store().worker_ready(id).await {
        warn_of!(why, "a ready worker was not recorded");
    }
}
