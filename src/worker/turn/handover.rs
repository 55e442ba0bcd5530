//! The hand-over: a turn is `running`, from its claim or from here, and only then the worker receives it
//! (I10).

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    history::{self, ToldHistory},
    job::Job,
    prepare::give_back,
    terminal::{Account, cancelled, speak},
};
use crate::{
    failure::Code,
    host::{
        Halt, Link,
        process::SendError,
        protocol::messages::{Omitted, ToWorker},
    },
    id::WorkerId,
    store::{claim::Phase, commands::Order},
    telemetry::{self, metrics},
    worker::deps::Deps,
};

/// Commits the move to `running` and sends the turn; the `seq` of `started`. `None`: the turn has
/// ended, was given back, or is not ours any more, and the worker has received nothing.
pub(in crate::worker) async fn hand_over(deps: &Deps, link: &mut impl Link, job: &mut Job) -> Option<i32> {
    // Read first: a turn that is `running` and waits for its history would look like a turn that runs.
    let history = history(deps, link, job).await?;
    let is_starting = job.claim.phase == Phase::Starting;
    let base = if is_starting { start(deps, link.worker(), job).await? } else { job.claim.last_seq };
    let why = match deliver(deps, link, job, history) {
        Ok(()) => return Some(base),
        Err(SendError::Closed) if !is_starting => {
            // The worker ended while the turn was claimed for it, and has received nothing.
            give_back(deps, &job.claim, "drain").await;
            return None;
        }
        Err(why) => why,
    };
    undelivered(deps, job, base, why).await;
    None
}

/// Ends a turn that did not reach its worker. An input that is too long is refused when it is posted, unless an
/// older release took it.
pub(in crate::worker) async fn undelivered(deps: &Deps, job: &Job, base: i32, why: SendError) {
    let (code, message) = why.of_a_turn();
    let account = Account::unstarted(&job.claim, Some(job));
    let word = account.failure(code, message, Some(why.to_string()));
    speak(deps, &job.claim, base, word).await;
}

/// What a process must be told of its conversation that did not serve the turn before. `None`: that cannot be read, and the
/// turn has ended: a worker that begins as if nothing had been said would be worse.
pub(in crate::worker) async fn history(deps: &Deps, link: &impl Link, job: &Job) -> Option<ToldHistory> {
    let assignment = &job.claim.assignment;
    if link.last_turn().is_some() || assignment.ordinal == 1 {
        return Some(ToldHistory::default());
    }
    let limits = job.agent.spec.history;
    if limits.turns == 0 || limits.bytes.0 == 0 {
        return Some(ToldHistory::nothing(assignment.ordinal));
    }
    let (why, is_away) = loop {
        match deps.store().past(job.claim.conversation, assignment.ordinal, limits).await {
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
    speak(deps, &job.claim, job.claim.last_seq, word).await;
    None
}

/// Commits the move to `running`; the `seq` of `started`.
pub(in crate::worker) async fn start(deps: &Deps, worker: WorkerId, job: &mut Job) -> Option<i32> {
    loop {
        let (asked_at, (at, _)) = (Instant::now(), job.clocks.next());
        let started = tokio::select! {
            started = deps.store().start(&job.claim, Some(worker)) => started,
            halt = job.reach.halted() => {
                if halt == Halt::Interrupted {
                    give_back(deps, &job.claim, "drain").await;
                }
                return None;
            }
        };
        match started {
            Ok(Some(base)) => return Some(base),
            Ok(None) => {
                cancelled_or_lost(deps, job).await;
                return None;
            }
            // Somebody else's lock is no fault of the worker, which is ready: the cap alone goes on.
            Err(why) if why.is_held() && !job.clocks.cap_left(Instant::now()).is_zero() => {
                deps.store().tell_who_keeps_back(job.claim.turn).await;
                pause().await;
                job.clocks.excuse(asked_at.elapsed());
                job.reach.set_due(job.clocks.next().0);
            }
            Err(why) if why.is_away() && Instant::now() < at => pause().await,
            Err(why) => {
                let account = Account::unstarted(&job.claim, Some(job));
                let word = account.failure(Code::Internal, Code::Internal.message(), Some(why.to_string()));
                speak(deps, &job.claim, job.claim.last_seq, word).await;
                return None;
            }
        }
    }
}

/// The turn did not start: a cancel came first, or another has it.
async fn cancelled_or_lost(deps: &Deps, job: &Job) {
    let commands = deps.store().commands(&[job.claim.turn]).await.unwrap_or_default();
    let by = commands.into_iter().find_map(|command| match command.order {
        Order::Cancel { by } => Some(by),
        Order::Answer { .. } => None,
    });
    match by {
        Some(by) => {
            speak(deps, &job.claim, job.claim.last_seq, cancelled(&by)).await;
        }
        None => metrics::leases_lost(),
    }
}

/// Sends the turn with what its worker is told of the past.
pub(in crate::worker) fn deliver(
    deps: &Deps,
    link: &mut impl Link,
    job: &Job,
    told: ToldHistory,
) -> Result<(), SendError> {
    let cap_left = job.clocks.cap_left(Instant::now());
    let deadline = deps.store().clock().now() + TimeDelta::from_std(cap_left).unwrap_or(TimeDelta::MAX);
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
    link.send(&message)
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
}
