//! The life of one conversation's worker: start, turns one after another, idle in between, end.
//!
//! ```text
//! starting ──ready──► busy ◄──► idle ──ttl, stop──► ended
//!     └─────────────────┴──────exit──────┴────────────┘
//! ```
//! An intentional end of an idle worker tells no client anything; so does an idle worker's crash.
//! A turn that reaches a worker which turns out to be dead gets a fresh one: it was never received.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    host::Host,
    job::Job,
    line::Line,
    process::{Exit, Heard, Process},
    run,
    slots::Slot,
    start::{self, Started},
};
use crate::{
    id::{ConversationId, TurnId, WorkerId},
    store::warn_of,
    telemetry::metrics,
};

/// A worker that said it is ready.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) process: Process,
    /// Freed by its drop, so after the process has ended.
    pub(super) slot: Slot,
    pub(super) conversation: ConversationId,
    /// The turn that it served last; `None` for a fresh process, which knows nothing yet.
    pub(super) last_turn: Option<TurnId>,
}

/// What becomes of a worker after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It may serve the next one.
    Keep,
    /// It must not.
    End,
}

/// Lives a worker's life, from its first job to its end.
pub(super) async fn live(
    host: Host,
    id: WorkerId,
    first: Job,
    mut jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
) {
    let conversation = first.claim.conversation;
    let span = first.span.clone();
    span.record("worker_id", tracing::field::display(id));
    let Started::Ready(mut worker, job) = start::start(&host, id, first).instrument(span).await else {
        host.note_ended(conversation, id);
        host.look_if_wanted();
        return place_again(&host, None, jobs).await;
    };
    let left_over = serve(&host, &mut worker, *job, &mut jobs, &stop).await;
    host.note_ended(conversation, id);
    worker.slot.leave();
    place_again(&host, left_over, jobs).await;
    let exit = worker.process.end().await;
    record(&host, id, &worker.process, exit).await;
    drop(worker);
    host.look_if_wanted();
}

/// Gives turns that came in while this life ended to a fresh one.
async fn place_again(host: &Host, left_over: Option<Job>, mut jobs: mpsc::Receiver<Job>) {
    jobs.close();
    if let Some(job) = left_over {
        host.place(job);
    }
    while let Some(job) = jobs.recv().await {
        host.place(job);
    }
}

/// Serves turns until the worker ends or is not wanted any more. Returns a turn that it took on but
/// that no worker has received.
async fn serve(
    host: &Host,
    worker: &mut Worker,
    first: Job,
    jobs: &mut mpsc::Receiver<Job>,
    stop: &CancellationToken,
) -> Option<Job> {
    let mut next = first;
    loop {
        let idle_ttl = next.agent.spec.idle_ttl.0;
        let turn = next.claim.turn;
        let span = next.span.clone();
        let fate = run::run(host, Line::Own(worker), &mut next).instrument(span).await;
        // Its place is free for another turn.
        drop(next);
        worker.last_turn = Some(turn);
        let is_wanted = !stop.is_cancelled() && !host.supervisor().soft().is_cancelled();
        if fate == Fate::End || !is_wanted || !host.note_idle(worker.conversation, worker.id) {
            return None;
        }
        // A turn that needs a worker may wait for one that is idle.
        host.look_if_wanted();
        next = idle(worker, jobs, stop, idle_ttl).await?;
        if is_dead(worker.process.pid()) {
            tracing::info!(worker_id = %worker.id, "the idle worker was dead; a fresh one takes the turn");
            return Some(next);
        }
        // Once a turn: a field that is recorded again stands twice in every line of the log.
        next.span.record("worker_id", tracing::field::display(worker.id));
    }
}

/// Waits for the next turn; `None` when the worker should end, or has.
async fn idle(
    worker: &mut Worker,
    jobs: &mut mpsc::Receiver<Job>,
    stop: &CancellationToken,
    ttl: Duration,
) -> Option<Job> {
    let until = tokio::time::Instant::now() + ttl;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            heard = worker.process.recv() => {
                if !is_harmless(worker, &heard) {
                    return None;
                }
            }
            job = jobs.recv() => return job,
            () = tokio::time::sleep_until(until) => return None,
        }
    }
}

/// Whether an idle worker may go on after this. What it says between turns belongs to no turn: it
/// cannot become an event any more, so it is counted and logged, and the worker is not trusted.
fn is_harmless(worker: &Worker, heard: &Heard) -> bool {
    match heard {
        Heard::Message(from) if from.message == super::wire::Message::Beat => true,
        Heard::Message(_) | Heard::Protocol(_) => {
            metrics::late_output();
            tracing::warn!(worker_id = %worker.id, last_turn = ?worker.last_turn, "a worker spoke between turns; it is stopped");
            false
        }
        Heard::Closed | Heard::Gone(_) => false,
        Heard::Exited(exit) => {
            tracing::info!(worker_id = %worker.id, exit = %exit, "an idle worker ended");
            false
        }
    }
}

/// Whether the process is gone though its guard has not told yet: a turn must not be handed to it.
pub(super) fn is_dead(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the command's name, which may hold anything but ends at the last `)`.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Records how a worker ended, for operators.
pub(super) async fn record(host: &Host, id: WorkerId, process: &Process, exit: Exit) {
    metrics::worker_exits(reason(&exit));
    let tail = process.stderr_tail();
    if let Err(why) = host.store().worker_ended(id, &exit.describe(), &tail).await {
        warn_of!(why, worker_id = %id, "a worker's end was not recorded");
    }
}

fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit { oom: true, .. } => "oom",
        Exit { too_many_processes: true, .. } => "processes",
        Exit { silence: true, .. } => "silence",
        Exit { code: Some(0), .. } => "ok",
        Exit { code: Some(_), .. } => "code",
        Exit { .. } => "signal",
    }
}
