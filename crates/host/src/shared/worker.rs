//! Shared workers: one process, many turns at once.
//!
//! ```text
//! starting ──ready──► busy ◄──► idle ──ttl──► asked to leave ──► ended
//!     │                 │ retired: a stop, a drain; no more turns ─► when the last has ended ─┘
//!     │                 │ condemned: a turn had to be given up ─► killed when the others have ended
//!     └─────────────────┴──── exit, or a line that belongs to no turn: every turn is told at once
//! ```
//!
//! Two kinds of tasks meet at a [`TurnRouter`]: a turn's task waits for a worker and runs the turn ([`serve`]); a
//! worker's task owns the process and delivers its messages ([`live`]). Each turn keeps its own clocks, commands
//! and last word; the worker's task writes none.
//!
//! Neither an intended end nor the crash of an idle worker is visible to clients.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::{
    lane::Lane,
    router::{Stage, Standing, TurnRouter, WorkerOutlook},
};
use crate::{
    owner::{HostOwner, HostedTurn, Obstacle, Started, unless_called_off},
    process::{Heard, Process},
    protocol::{
        codec::{Fault, ProtocolError},
        messages::{FromWorker, Message},
    },
    slots::Slot,
    start::{launch, pause, ready},
    task::TaskKind,
    workers::WorkerHost,
};

/// Workers tried for one turn, if each is gone before it takes the turn.
const WORKERS_MAX: usize = 3;
/// How long a worker may keep running after it closed its output; its turns give up earlier.
const CLOSED_GRACE: Duration = Duration::from_secs(2);
/// The worker's startup clock lapses just after that of its first turn; its verdict is better, since the worker's
/// task knows whether the program runs.
const SAME_MOMENT: Duration = Duration::from_millis(500);

/// Why a worker serves no more turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerEnd {
    /// The process has ended.
    Exited,
    /// The worker closed its output.
    Closed,
    /// No turn, and none will come.
    Unwanted,
    /// The worker is not trusted, or its turns are held elsewhere.
    Condemned,
}

/// Runs a turn on a shared worker, to the turn's end.
pub(crate) async fn serve<O: HostOwner>(host: &WorkerHost<O>, mut turn: O::Turn) {
    // The conversation may have its own worker from an older revision, which would never learn of this turn.
    host.stop_worker_of(turn.conversation());
    let owner = host.owner();
    let mut gone = 0;
    while gone < WORKERS_MAX {
        let mut lane = lane(host, &turn);
        match unless_called_off(&mut turn, lane.ready()).await {
            Ok(true) => return serve_on(host, lane, turn).await,
            Ok(false) => {
                gone += 1;
                tracing::info!(worker_id = %lane.worker(), "the worker was gone; another takes the turn");
            }
            Err(Obstacle::Lacks { .. }) if turn.must_start_here() => {
                if let Err(obstacle) = unless_called_off(&mut turn, pause()).await {
                    return owner.not_started(turn, obstacle, None).await;
                }
            }
            Err(Obstacle::Lapsed) => {
                let known = timeout(SAME_MOMENT, lane.ready()).await;
                let obstacle = known.ok().and_then(Result::err).unwrap_or(Obstacle::Lapsed);
                return owner.not_started(turn, obstacle, None).await;
            }
            Err(obstacle) => return owner.not_started(turn, obstacle, None).await,
        }
    }
    let obstacle = Obstacle::failed("The worker for this agent stopped before it took the turn.");
    owner.not_started(turn, obstacle, None).await;
}

/// Runs a turn on the ready worker of `lane`.
pub(crate) async fn serve_on<O: HostOwner>(host: &WorkerHost<O>, mut lane: Lane, mut turn: O::Turn) {
    turn.span().record("worker_id", tracing::field::display(lane.worker()));
    host.owner().run(&mut turn, &mut lane).await;
    // The worker's lane must be free before the turn's slot is.
    drop(lane);
}

/// A lane at a worker with room; starts a worker if none has.
fn lane<O: HostOwner>(host: &WorkerHost<O>, turn: &O::Turn) -> Lane {
    let owner = host.owner();
    let make = || (owner.mint(), owner.program(turn));
    let (lane, made) = host.pool().lane(turn.agent(), turn.id(), make);
    if let Some(made) = made {
        if owner.supervisor().soft().is_cancelled() {
            made.retire(Standing::Retired);
        }
        let name = format!("worker {}", made.worker());
        let agent = &made.program().agent;
        // No child of the turn's span, since the worker outlives the turn.
        let span = tracing::info_span!(parent: None, "shared worker", worker_id = %made.worker(), agent);
        let living = live(host.clone(), made).instrument(span);
        owner.supervisor().spawn(TaskKind::Worker, name, living);
    }
    lane
}

/// Runs a shared worker from its start to its end.
async fn live<O: HostOwner>(host: WorkerHost<O>, router: TurnRouter) {
    let (owner, worker) = (host.owner(), router.worker());
    let Some((slot, mut process)) = start(&host, &router).await else {
        host.pool().forget(worker);
        return owner.note_room();
    };
    let over = put_through_all(&host, &router, &mut process).await;
    host.pool().forget(worker);
    slot.leave();
    if over == WorkerEnd::Closed {
        tokio::select! {
            _ = timeout(CLOSED_GRACE, process.ended()) => {}
            () = router.killed() => process.kill(),
        }
    }
    let exit = if over == WorkerEnd::Condemned {
        process.kill();
        process.ended().await
    } else {
        process.end().await
    };
    router.close(Stage::Exited(exit));
    owner.note_ended(worker, exit, process.stderr_tail()).await;
    drop((process, slot));
    owner.note_room();
}

/// Starts the process and waits until it is ready; `None` if the start failed or no turn waits for it.
async fn start<O: HostOwner>(host: &WorkerHost<O>, router: &TurnRouter) -> Option<(Slot, Process)> {
    let (owner, worker, program) = (host.owner(), router.worker(), router.program());
    let until = Instant::now() + program.startup;
    let launched = unless_unwanted(router, until, launch(host, program)).await;
    let (slot, mut process) = match launched {
        Ok(launched) => launched,
        Err(obstacle) => {
            refuse(router, obstacle, None);
            return None;
        }
    };
    router.note_process(&process);
    let (agent, revision, pid) = (&program.agent, program.revision, process.pid());
    owner.note_started(Started { worker, agent, revision, conversation: None, pid }).await;
    match unless_unwanted(router, until, ready(&mut process)).await {
        Ok(()) => {
            owner.note_ready(worker).await;
            router.enter(Stage::Ready);
            Some((slot, process))
        }
        Err(obstacle) => {
            refuse(router, obstacle, Some(&process));
            process.kill();
            let exit = process.ended().await;
            owner.note_ended(worker, exit, process.stderr_tail()).await;
            None
        }
    }
}

/// Runs a step of a start, unless it takes too long or no turn waits any more.
async fn unless_unwanted<T>(
    router: &TurnRouter,
    until: Instant,
    step: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::select! {
        done = step => done,
        () = sleep_until(until) => Err(Obstacle::Lapsed),
        () = router.deserted() => Err(Obstacle::failed("No turn waits for the worker.")),
        () = router.killed() => Err(Obstacle::failed("The worker's turns are lost.")),
    }
}

/// Reports the failed start to every waiting turn. Each writes its own last word.
fn refuse(router: &TurnRouter, obstacle: Obstacle, process: Option<&Process>) {
    let stage = match obstacle.told(process) {
        Obstacle::Failed { message, detail } => {
            let tail = process.map(Process::stderr_tail).filter(|tail| !tail.is_empty());
            let detail = detail.or(tail);
            tracing::info!(message, detail, "a shared worker did not start");
            Stage::Refused { message, detail }
        }
        Obstacle::Lacks { lack, detail } => Stage::Lacking { lack, detail },
        Obstacle::Lapsed | Obstacle::Cancelled(_) | Obstacle::Halted(_) => return,
    };
    router.close(stage);
}

/// Delivers the worker's messages until it serves no more turns.
async fn put_through_all<O: HostOwner>(
    host: &WorkerHost<O>,
    router: &TurnRouter,
    process: &mut Process,
) -> WorkerEnd {
    let idle_ttl = router.program().idle_ttl;
    loop {
        let idle_since = match router.outlook() {
            WorkerOutlook::Over(Standing::Condemned) => return WorkerEnd::Condemned,
            WorkerOutlook::Over(_) => return WorkerEnd::Unwanted,
            WorkerOutlook::Idle(since) => {
                if host.slots().is_short() {
                    router.retire_if_idle();
                    continue;
                }
                // A turn that needs another worker may be waiting for an idle one to leave.
                host.owner().note_room();
                Some(since)
            }
            WorkerOutlook::Busy => None,
        };
        let idle_until = idle_since.unwrap_or_else(Instant::now) + idle_ttl;
        tokio::select! {
            biased;
            () = router.killed() => return WorkerEnd::Condemned,
            () = router.changed() => {}
            heard = process.recv() => {
                if let Some(over) = heed(router, heard).await {
                    return over;
                }
            }
            () = sleep_until(idle_until), if idle_since.is_some() => {
                // Does nothing if a turn has just arrived.
                router.retire_if_idle();
            }
        }
    }
}

/// What an item from the worker means for the worker itself; `None`: it goes on.
async fn heed(router: &TurnRouter, heard: Heard) -> Option<WorkerEnd> {
    let turn = match &heard {
        // About the process, whatever turn it names.
        Heard::Message(FromWorker { message: Message::Ready | Message::Beat, .. }) => return None,
        Heard::Message(from) => from.turn_id,
        Heard::Protocol(error) => error.turn_id,
        Heard::Closed | Heard::Gone(_) => {
            router.close(Stage::Closed);
            return Some(WorkerEnd::Closed);
        }
        Heard::Exited(exit) => {
            let turns = router.close(Stage::Exited(*exit));
            tracing::info!(%exit, turns, "a shared worker ended");
            return Some(WorkerEnd::Exited);
        }
    };
    let fault = match (turn, heard) {
        (Some(turn), heard) => router.put_through(turn, heard).await.err()?,
        (None, Heard::Protocol(error)) => {
            tracing::warn!(line = error.excerpt, "a shared worker's line breaks the protocol");
            error.fault
        }
        (None, _) => Fault::NoTurn,
    };
    // Without the line: it may belong to any conversation, so no client may see it.
    let error = ProtocolError { fault, excerpt: String::new(), turn_id: None };
    let message = error.to_string();
    let turns = router.close(Stage::Faulty(error));
    tracing::warn!(message, turns, "a shared worker's output belongs to no turn; the worker is stopped");
    Some(WorkerEnd::Condemned)
}
