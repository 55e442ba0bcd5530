//! The hand-over: a turn is `running`, from its claim or from here, and only then the worker receives it
//! (I10).

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    begin::give_back,
    ending::{Account, cancelled, speak},
    host::Host,
    job::{Halt, Job},
    line::Line,
    process::SendError,
    wire::{Said, ToWorker},
};
use crate::{
    failure::Code,
    id::WorkerId,
    store::{claim::Phase, commands::Order},
    telemetry::{self, metrics},
};

/// Commits the move to `running` and sends the turn; the `seq` of `started`. `None`: the turn has
/// ended, was given back, or is not ours any more, and the worker has received nothing.
pub(super) async fn hand_over(host: &Host, line: &mut Line<'_>, job: &mut Job) -> Option<i32> {
    // Read first: a turn that is `running` and waits for its history would look like one that runs.
    let history = history(host, line, job).await;
    let is_starting = job.claim.phase == Phase::Starting;
    let base = if is_starting { start(host, line.worker(), job).await? } else { job.claim.last_seq };
    let why = match send(host, line, job, history) {
        Ok(()) => return Some(base),
        Err(SendError::Closed) if !is_starting => {
            // The worker ended while the turn was claimed for it, and has received nothing.
            give_back(host, &job.claim, "drain").await;
            return None;
        }
        Err(why) => why,
    };
    let message = match why {
        SendError::TooLong => "Your message is too long for this agent's worker.",
        _ => "The worker handling your request could not be reached.",
    };
    let account = Account::unstarted(&job.claim, Some(job));
    let word = account.failure(Code::WorkerExited, message, Some(why.to_string()));
    speak(host, &job.claim, base, word).await;
    None
}

/// What a process must be told of its conversation that did not serve the turn before.
pub(super) async fn history(host: &Host, line: &Line<'_>, job: &Job) -> Vec<Said> {
    if line.last_turn().is_some() || job.claim.assignment.ordinal == 1 {
        return Vec::new();
    }
    let limits = job.agent.spec.history;
    loop {
        match host.store().history(job.claim.conversation, job.claim.assignment.ordinal, limits).await {
            Ok(said) => {
                let role = |is_user| if is_user { "user" } else { "assistant" };
                return said
                    .into_iter()
                    .map(|said| Said { role: role(said.is_user).to_owned(), text: said.text })
                    .collect();
            }
            Err(why) if why.is_away() && job.clocks.next().0 > Instant::now() => pause().await,
            Err(why) => {
                tracing::error!(%why, "the conversation's history cannot be read");
                return Vec::new();
            }
        }
    }
}

pub(super) async fn start(host: &Host, worker: WorkerId, job: &mut Job) -> Option<i32> {
    loop {
        let (at, _) = job.clocks.next();
        let started = tokio::select! {
            started = host.store().start(&job.claim, Some(worker)) => started,
            halt = job.reach.halted() => {
                if halt == Halt::Interrupted {
                    give_back(host, &job.claim, "drain").await;
                }
                return None;
            }
        };
        match started {
            Ok(Some(base)) => return Some(base),
            Ok(None) => {
                cancelled_or_lost(host, job).await;
                return None;
            }
            Err(why) if why.is_away() && Instant::now() < at => pause().await,
            Err(why) => {
                let account = Account::unstarted(&job.claim, Some(job));
                let word = account.failure(Code::Internal, Code::Internal.message(), Some(why.to_string()));
                speak(host, &job.claim, job.claim.last_seq, word).await;
                return None;
            }
        }
    }
}

/// The turn did not start: a cancel came first, or another has it.
async fn cancelled_or_lost(host: &Host, job: &Job) {
    let commands = host.store().commands(&[job.claim.turn]).await.unwrap_or_default();
    let by = commands.into_iter().find_map(|command| match command.order {
        Order::Cancel { by } => Some(by),
        Order::Answer { .. } => None,
    });
    match by {
        Some(by) => {
            speak(host, &job.claim, job.claim.last_seq, cancelled(&by)).await;
        }
        None => metrics::leases_lost(),
    }
}

pub(super) fn send(
    host: &Host,
    line: &mut Line<'_>,
    job: &Job,
    mut history: Vec<Said>,
) -> Result<(), SendError> {
    let cap_left = job.clocks.cap_left(Instant::now());
    let deadline = host.store().clock().now() + TimeDelta::from_std(cap_left).unwrap_or(TimeDelta::MAX);
    loop {
        let message = ToWorker::Turn {
            turn_id: job.claim.turn,
            conversation_id: job.claim.conversation,
            attempt: job.claim.epoch,
            input: RawValue::from_string(job.claim.assignment.input.clone())
                .map_err(|_| SendError::Unwritable)?,
            history: (!history.is_empty()).then(|| history.clone()),
            deadline,
            traceparent: Some(
                telemetry::current_traceparent().unwrap_or_else(|| job.claim.assignment.traceparent.clone()),
            ),
        };
        match line.send(&message) {
            // The newest half of the history is worth more than none.
            Err(SendError::TooLong) if !history.is_empty() => {
                history.drain(..history.len().div_ceil(2));
            }
            sent => return sent,
        }
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
}
