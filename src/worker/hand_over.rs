//! The hand-over: a turn is `running`, from its claim or from here, and only then the worker receives it
//! (I10).

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    begin::give_back,
    ending::{Account, cancelled, speak},
    history::{self, Told},
    host::Host,
    job::{Halt, Job},
    line::Line,
    process::SendError,
    wire::{Omitted, ToWorker},
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
    let history = history(host, line, job).await?;
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
    let (code, message) = undelivered(why);
    let account = Account::unstarted(&job.claim, Some(job));
    let word = account.failure(code, message, Some(why.to_string()));
    speak(host, &job.claim, base, word).await;
    None
}

/// What to say of a turn that did not reach its worker. One that is too long is refused when it is posted, unless an
/// older release took it.
pub(super) fn undelivered(why: SendError) -> (Code, &'static str) {
    match why {
        SendError::TooLong => (Code::InputTooLong, Code::InputTooLong.message()),
        _ => (Code::WorkerExited, "The worker handling your request could not be reached."),
    }
}

/// What a process must be told of its conversation that did not serve the turn before. `None`: that cannot be read, and the
/// turn has ended: a worker that begins as if nothing had been said would be worse.
pub(super) async fn history(host: &Host, line: &Line<'_>, job: &Job) -> Option<Told> {
    let assignment = &job.claim.assignment;
    if line.last_turn().is_some() || assignment.ordinal == 1 {
        return Some(Told::default());
    }
    let limits = job.agent.spec.history;
    if limits.turns == 0 || limits.bytes.0 == 0 {
        return Some(Told::nothing(assignment.ordinal));
    }
    let (why, is_away) = loop {
        match host.store().past(job.claim.conversation, assignment.ordinal, limits).await {
            Ok(past) => match history::told(&past, assignment.ordinal, &assignment.input, limits) {
                Ok(told) => {
                    if let Some(omitted) = told.omitted {
                        let Omitted { turns, shortened } = omitted;
                        tracing::info!(
                            turns,
                            shortened,
                            "the history is not told whole: turns are left out, or shortened"
                        );
                    }
                    return Some(told);
                }
                Err(why) => break (why.to_string(), false),
            },
            Err(why) if why.is_away() && job.clocks.next().0 > Instant::now() => pause().await,
            Err(why) => break (why.to_string(), why.is_away()),
        }
    };
    tracing::error!(why, "the conversation's history cannot be read");
    let (code, account) = (Code::HistoryUnavailable, Account::unstarted(&job.claim, Some(job)));
    let word = account.failure_as(code, code.message(), Some(why), Some(is_away));
    speak(host, &job.claim, job.claim.last_seq, word).await;
    None
}

pub(super) async fn start(host: &Host, worker: WorkerId, job: &mut Job) -> Option<i32> {
    loop {
        let (asked_at, (at, _)) = (Instant::now(), job.clocks.next());
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
            // Somebody else's lock is no fault of the worker, which is ready: the cap alone goes on.
            Err(why) if why.is_held() && !job.clocks.cap_left(Instant::now()).is_zero() => {
                host.store().tell_who_keeps_back(job.claim.turn).await;
                pause().await;
                job.clocks.excuse(asked_at.elapsed());
                job.reach.set_due(job.clocks.next().0);
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

pub(super) fn send(host: &Host, line: &mut Line<'_>, job: &Job, told: Told) -> Result<(), SendError> {
    let cap_left = job.clocks.cap_left(Instant::now());
    let deadline = host.store().clock().now() + TimeDelta::from_std(cap_left).unwrap_or(TimeDelta::MAX);
    let message = ToWorker::Turn {
        turn_id: job.claim.turn,
        conversation_id: job.claim.conversation,
        attempt: job.claim.epoch,
        input: RawValue::from_string(job.claim.assignment.input.clone())
            .map_err(|_| SendError::Unwritable)?,
        history: (!told.said.is_empty()).then_some(told.said),
        history_omitted: told.omitted,
        deadline,
        traceparent: Some(
            telemetry::current_traceparent().unwrap_or_else(|| job.claim.assignment.traceparent.clone()),
        ),
    };
    line.send(&message)
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
}
