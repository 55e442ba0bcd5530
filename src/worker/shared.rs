//! Shared workers: one process, many turns at once.
//!
//! ```text
//! starting ──ready──► busy ◄──► idle ──ttl──► asked to leave ──► ended
//!     │                 │ retired: a stop, a drain; no more turns ─► when the last has ended ─┘
//!     │                 │ condemned: a turn had to be given up ─► killed when the others have ended
//!     └─────────────────┴──── exit; a line that is nobody's: every turn is told, at once
//! ```
//! Two halves that meet at a [`Switchboard`]: a turn's task, which waits for a worker and runs the turn
//! ([`serve`]), and a worker's task, which owns the process and puts through what it says ([`live`]).
//! Each turn keeps its own clocks, orders and last word; the worker's task writes none.
//!
//! An intentional end tells no client anything, nor does the crash of an idle worker.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::{
    codec::{Fault, ProtocolError},
    host::Host,
    job::Job,
    life,
    line::{Extension, Line},
    process::{Heard, Process},
    run,
    slots::Slot,
    start::{self, Obstacle},
    switchboard::{Outlook, Stage, Standing, Switchboard},
    wire::{FromWorker, Message},
};
use crate::{id::WorkerId, task::Kind};

/// Workers that one turn waits for, one after another, where each is gone before it took the turn.
const WORKERS_MAX: usize = 3;
/// How long a worker may live on after it closed its output; a turn of it gives up earlier.
const CLOSED_GRACE: Duration = Duration::from_secs(2);
/// The worker's own startup clock lapses right behind that of the turn that started it, and knows whether its program runs.
const SAME_MOMENT: Duration = Duration::from_millis(500);

/// Why a worker's turns are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// It is gone.
    Exited,
    /// It will say nothing more.
    Closed,
    /// It has no turn, and is given none.
    Unwanted,
    /// It is not trusted, or its turns are not ours any more.
    Condemned,
}

/// Runs a turn on a shared worker, from its claim to its last word.
pub(super) async fn serve(host: &Host, mut job: Job) {
    // A worker of its own, of an older revision, would never learn of this turn.
    host.stop_worker_of(job.claim.conversation);
    let mut gone = 0;
    while gone < WORKERS_MAX {
        let mut line = line(host, &job);
        match start::unless_interrupted(&mut job, line.ready()).await {
            Ok(true) => return run_on(host, line, job).await,
            Ok(false) => {
                gone += 1;
                tracing::info!(worker_id = %line.worker(), "the worker was gone; another takes the turn");
            }
            // Given back it could not be claimed again.
            Err(Obstacle::Lacks { .. }) if job.claim.epoch >= start::ATTEMPTS_MAX => {
                if let Err(obstacle) = start::unless_interrupted(&mut job, start::pause()).await {
                    return start::tell(host, &job, obstacle, None).await;
                }
            }
            Err(Obstacle::Lapsed) => {
                let known = timeout(SAME_MOMENT, line.ready()).await;
                let obstacle = known.ok().and_then(Result::err).unwrap_or(Obstacle::Lapsed);
                return start::tell(host, &job, obstacle, None).await;
            }
            Err(obstacle) => return start::tell(host, &job, obstacle, None).await,
        }
    }
    let obstacle = start::failed("The worker for this agent stopped before it took the turn.");
    start::tell(host, &job, obstacle, None).await;
}

/// Runs a turn on the worker at the other end of `line`, which is ready.
pub(super) async fn run_on(host: &Host, mut line: Extension, mut job: Job) {
    job.span.record("worker_id", tracing::field::display(line.worker()));
    run::run(host, Line::Shared(&mut line), &mut job).await;
    // There is room at the worker before there is a place for another turn.
    drop(line);
}

/// A line to a worker that has room; starts one where none has.
fn line(host: &Host, job: &Job) -> Extension {
    let mint = || WorkerId(host.store().clock().mint());
    let (line, made) = host.pool().line(&job.agent, job.claim.turn, mint);
    if let Some(made) = made {
        if host.supervisor().soft().is_cancelled() {
            made.retire(Standing::Retired);
        }
        let name = format!("worker {}", made.worker());
        // Not below the turn's: it outlives that.
        let span = tracing::info_span!(
            parent: None, "shared worker", worker_id = %made.worker(), agent = %job.agent.name,
            replica_id = %host.store().replica(),
        );
        let living = live(host.clone(), made).instrument(span);
        host.supervisor().spawn(Kind::Worker, name, living);
    }
    line
}

/// Lives a shared worker's life.
async fn live(host: Host, switchboard: Switchboard) {
    let worker = switchboard.worker();
    let Some((slot, mut process)) = start(&host, &switchboard).await else {
        host.pool().forget(worker);
        return host.look_if_wanted();
    };
    let over = put_through_all(&host, &switchboard, &mut process).await;
    host.pool().forget(worker);
    slot.leave();
    if over == Over::Closed {
        tokio::select! {
            _ = timeout(CLOSED_GRACE, process.ended()) => {}
            () = switchboard.killed() => process.kill(),
        }
    }
    let exit = if over == Over::Condemned {
        process.kill();
        process.ended().await
    } else {
        process.end().await
    };
    switchboard.close(Stage::Exited(exit));
    life::record(&host, worker, &process, exit).await;
    drop((process, slot));
    host.look_if_wanted();
}

/// Starts the process and waits until it is ready; `None` where it is not, or nobody waits for it.
async fn start(host: &Host, switchboard: &Switchboard) -> Option<(Slot, Process)> {
    let (worker, agent) = (switchboard.worker(), switchboard.agent());
    let until = Instant::now() + agent.spec.timeouts.startup.0;
    let launched = unless_unwanted(switchboard, until, start::launch(host, agent, None)).await;
    let (slot, mut process) = match launched {
        Ok(launched) => launched,
        Err(obstacle) => {
            refuse(switchboard, obstacle, None);
            return None;
        }
    };
    switchboard.note_process(&process);
    start::note_started(host, worker, agent, None, &process).await;
    match unless_unwanted(switchboard, until, start::ready(&mut process)).await {
        Ok(()) => {
            start::note_ready(host, worker).await;
            switchboard.enter(Stage::Ready);
            Some((slot, process))
        }
        Err(obstacle) => {
            refuse(switchboard, obstacle, Some(&process));
            process.kill();
            let exit = process.ended().await;
            life::record(host, worker, &process, exit).await;
            None
        }
    }
}

/// A step of a start, unless it takes too long or no turn waits for it any more.
async fn unless_unwanted<T>(
    switchboard: &Switchboard,
    until: Instant,
    step: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::select! {
        done = step => done,
        () = sleep_until(until) => Err(Obstacle::Lapsed),
        () = switchboard.deserted() => Err(start::failed("Nobody waits for the worker.")),
        () = switchboard.killed() => Err(start::failed("The worker's turns are lost.")),
    }
}

/// Tells every turn that waits. Each writes its own last word.
fn refuse(switchboard: &Switchboard, obstacle: Obstacle, process: Option<&Process>) {
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
    switchboard.close(stage);
}

/// Puts through what the worker says, until its turns are over.
async fn put_through_all(host: &Host, switchboard: &Switchboard, process: &mut Process) -> Over {
    let idle_ttl = switchboard.agent().spec.idle_ttl.0;
    loop {
        let idle_since = match switchboard.outlook() {
            Outlook::Over(Standing::Condemned) => return Over::Condemned,
            Outlook::Over(_) => return Over::Unwanted,
            Outlook::Idle(since) => {
                if host.is_short() {
                    switchboard.retire_if_idle();
                    continue;
                }
                // A turn that needs a worker may wait for one that is idle.
                host.look_if_wanted();
                Some(since)
            }
            Outlook::Busy => None,
        };
        let idle_until = idle_since.unwrap_or_else(Instant::now) + idle_ttl;
        tokio::select! {
            biased;
            () = switchboard.killed() => return Over::Condemned,
            () = switchboard.changed() => {}
            heard = process.recv() => {
                if let Some(over) = heed(switchboard, heard).await {
                    return over;
                }
            }
            () = sleep_until(idle_until), if idle_since.is_some() => {
                // Unless a turn has come at this very moment.
                switchboard.retire_if_idle();
            }
        }
    }
}

/// What something that was heard means for the worker; `None`: it goes on.
async fn heed(switchboard: &Switchboard, heard: Heard) -> Option<Over> {
    let turn = match &heard {
        // Of the process, whatever turn it names.
        Heard::Message(FromWorker { message: Message::Ready | Message::Beat, .. }) => return None,
        Heard::Message(from) => from.turn_id,
        Heard::Protocol(error) => error.turn_id,
        Heard::Closed | Heard::Gone(_) => {
            switchboard.close(Stage::Closed);
            return Some(Over::Closed);
        }
        Heard::Exited(exit) => {
            let turns = switchboard.close(Stage::Exited(*exit));
            tracing::info!(%exit, turns, "a shared worker ended");
            return Some(Over::Exited);
        }
    };
    let fault = match (turn, heard) {
        (Some(turn), heard) => switchboard.put_through(turn, heard).await.err()?,
        (None, Heard::Protocol(error)) => {
            tracing::warn!(line = error.excerpt, "a line of a shared worker is not the protocol");
            error.fault
        }
        (None, _) => Fault::NoTurn,
    };
    // Without the line itself: nobody knows whose it is, so no client may see it.
    let error = ProtocolError { fault, excerpt: String::new(), turn_id: None };
    let message = error.to_string();
    let turns = switchboard.close(Stage::Faulty(error));
    tracing::warn!(message, turns, "a shared worker said something that is nobody's; it is ended");
    Some(Over::Condemned)
}
