//! The life of one conversation's worker: start, turns one after another, idle in between, end.
//!
//! ```text
//! starting ──ready──► busy ◄──► idle ──ttl, stop──► ended
//!     └─────────────────┴──────exit──────┴────────────┘
//! ```
//!
//! Neither the intended end of an idle worker nor its crash is visible to clients. If an idle worker turns out to
//! be dead when a turn arrives, a new worker takes the turn: no worker has received it.

use std::time::Duration;

use metrics::counter;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::link::OwnProcess;
use crate::{
    owner::{Fate, HostOwner, HostedTurn, LATE_OUTPUT, Started, unless_called_off},
    process::{Heard, proc_tree::is_dead},
    protocol::messages::Message,
    start::{launch_for, ready},
    workers::WorkerHost,
};
use lastword_words::id::WorkerId;

/// Runs a worker from its first turn to its end.
pub(crate) async fn live<O: HostOwner>(
    host: WorkerHost<O>,
    worker: WorkerId,
    first: O::Turn,
    mut turns: mpsc::Receiver<O::Turn>,
    stop: CancellationToken,
) {
    let (conversation, span) = (first.conversation(), first.span());
    span.record("worker_id", tracing::field::display(worker));
    let Some((mut own, turn)) = start(&host, worker, first).instrument(span).await else {
        host.forget(conversation, worker);
        host.owner().note_room();
        return place_again(&host, None, turns).await;
    };
    let left_over = serve(&host, &mut own, turn, &mut turns, &stop).await;
    host.forget(conversation, worker);
    own.slot.leave();
    place_again(&host, left_over, turns).await;
    let exit = own.process.end().await;
    host.owner().note_ended(worker, exit, own.process.stderr_tail()).await;
    drop(own);
    host.owner().note_room();
}

/// Places turns that arrived while this worker was ending with a new one.
async fn place_again<O: HostOwner>(
    host: &WorkerHost<O>,
    left_over: Option<O::Turn>,
    mut turns: mpsc::Receiver<O::Turn>,
) {
    turns.close();
    if let Some(turn) = left_over {
        host.place(turn);
    }
    while let Some(turn) = turns.recv().await {
        host.place(turn);
    }
}

/// Starts a worker for the turn and waits until it is ready. `None`: the turn has ended or is held elsewhere, and
/// the worker has ended.
async fn start<O: HostOwner>(
    host: &WorkerHost<O>,
    worker: WorkerId,
    mut turn: O::Turn,
) -> Option<(OwnProcess, O::Turn)> {
    let owner = host.owner();
    let (slot, mut process) = match launch_for(host, &mut turn).await {
        Ok(launched) => launched,
        Err(obstacle) => {
            owner.not_started(turn, obstacle, None).await;
            return None;
        }
    };
    let conversation = turn.conversation();
    host.note_process(conversation, worker, process.renewer());
    let (agent, revision) = turn.agent();
    let pid = process.pid();
    let started = Started { worker, agent, revision, conversation: Some(conversation), pid };
    owner.note_started(started).await;
    match unless_called_off(&mut turn, ready(&mut process)).await {
        Ok(()) => {
            owner.note_ready(worker).await;
            Some((OwnProcess { worker, process, slot, conversation, last_turn: None }, turn))
        }
        Err(obstacle) => {
            slot.leave();
            owner.not_started(turn, obstacle, Some(&process)).await;
            process.kill();
            let exit = process.ended().await;
            owner.note_ended(worker, exit, process.stderr_tail()).await;
            None
        }
    }
}

/// Serves turns until the worker ends or should. Returns a turn that was accepted but that no worker has received.
async fn serve<O: HostOwner>(
    host: &WorkerHost<O>,
    own: &mut OwnProcess,
    first: O::Turn,
    turns: &mut mpsc::Receiver<O::Turn>,
    stop: &CancellationToken,
) -> Option<O::Turn> {
    let mut next = first;
    loop {
        let (idle_ttl, turn, span) = (next.idle_ttl(), next.id(), next.span());
        let fate = host.owner().run(&mut next, own).instrument(span).await;
        // Frees the turn's slot.
        drop(next);
        own.last_turn = Some(turn);
        let is_wanted = !stop.is_cancelled() && !host.owner().supervisor().soft().is_cancelled();
        if fate == Fate::End || !is_wanted || !host.note_idle(own.conversation, own.worker) {
            return None;
        }
        // A turn that needs another worker may be waiting for an idle one to leave.
        host.owner().note_room();
        next = idle(own, turns, stop, idle_ttl).await?;
        if is_dead(own.process.pid()) {
            tracing::info!(worker_id = %own.worker, "the idle worker was dead; a fresh one takes the turn");
            return Some(next);
        }
        // Once a turn: a field recorded twice appears twice in every log line.
        next.span().record("worker_id", tracing::field::display(own.worker));
    }
}

/// Waits for the next turn; `None` if the worker should end or has ended.
async fn idle<T>(
    own: &mut OwnProcess,
    turns: &mut mpsc::Receiver<T>,
    stop: &CancellationToken,
    ttl: Duration,
) -> Option<T> {
    let until = Instant::now() + ttl;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            heard = own.process.recv() => {
                if !is_harmless(own, &heard) {
                    return None;
                }
            }
            turn = turns.recv() => return turn,
            () = tokio::time::sleep_until(until) => return None,
        }
    }
}

/// Whether an idle worker may go on after this. A message between turns belongs to no turn and cannot become an
/// event: it is counted and logged, and the worker is stopped.
fn is_harmless(own: &OwnProcess, heard: &Heard) -> bool {
    match heard {
        Heard::Message(from) if from.message == Message::Beat => true,
        Heard::Message(_) | Heard::Protocol(_) => {
            counter!(LATE_OUTPUT).increment(1);
            let last_turn = own.last_turn;
            tracing::warn!(
                worker_id = %own.worker, ?last_turn,
                "a worker sent output between turns; the worker is stopped"
            );
            false
        }
        Heard::Closed | Heard::Gone(_) => false,
        Heard::Exited(exit) => {
            tracing::info!(worker_id = %own.worker, %exit, "an idle worker ended");
            false
        }
    }
}
