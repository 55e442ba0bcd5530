//! The hand-over of a turn: `running` is committed first, at the claim or here, and only then does the worker
//! receive the turn (I10).

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

/// Commits `running` and sends the turn. Returns the `seq` of `started`. `None`: the turn has ended, was given
/// back or is no longer held here, and the worker has received nothing.
pub(in crate::worker) async fn hand_over(deps: &Deps, link: &mut impl Link, job: &mut Job) -> Option<i32> {
    // Before the commit: a turn that is `running` while its history is read would look as if its worker worked.
    let history = history(deps, link, job).await?;
    let is_starting = job.claim.phase == Phase::Starting;
    let base = if is_starting { start(deps, link.worker(), job).await? } else { job.claim.last_seq };
    let why = match deliver(deps, link, job, history) {
        Ok(()) => return Some(base),
        Err(SendError::Closed) if !is_starting => {
            // The worker ended after the claim chose it, and has received nothing.
            give_back(deps, &job.claim, "drain").await;
            return None;
        }
        Err(why) => why,
    };
    undelivered(deps, job, base, why).await;
    None
}

/// Ends a turn whose message did not reach the worker. Too long an input is normally refused by POST; an older
/// release may have accepted one.
pub(in crate::worker) async fn undelivered(deps: &Deps, job: &Job, base: i32, why: SendError) {
    let (code, message) = why.of_a_turn();
    let account = Account::unstarted(&job.claim, Some(job));
    let word = account.failure(code, message, Some(why.to_string()));
    speak(deps, &job.claim, base, word).await;
}

/// The history for a worker that did not serve the conversation's previous turn. `None`: the history is unreadable
/// and the turn has ended. A worker that starts without its history would be worse than a failed turn.
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
        match deps.store.past(job.claim.conversation, assignment.ordinal, limits).await {
            Ok(past) => match history::told(&past, assignment.ordinal, &assignment.input, limits) {
                Ok(told) => {
                    if let Some(omitted) = told.omitted {
                        let Omitted { turns, shortened } = omitted;
                        tracing::info!(
                            turns,
                            shortened,
                            "the worker gets a part of the history: turns are left out or shortened"
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

/// Commits `running`. Returns the `seq` of `started`; `None` if the turn has ended or is no longer held here.
pub(in crate::worker) async fn start(deps: &Deps, worker: WorkerId, job: &mut Job) -> Option<i32> {
    loop {
        let (asked_at, (at, _)) = (Instant::now(), job.clocks.next());
        let started = tokio::select! {
            started = deps.store.start(&job.claim, Some(worker)) => started,
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
            // Another session holds the row's lock. The worker is ready, so this wait counts against the cap only.
            Err(why) if why.is_held() && !job.clocks.cap_left(Instant::now()).is_zero() => {
                deps.store.tell_who_keeps_back(job.claim.turn).await;
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

/// The start matched no row: the turn was cancelled first, or is no longer held here.
async fn cancelled_or_lost(deps: &Deps, job: &Job) {
    let commands = deps.store.commands(&[job.claim.turn]).await.unwrap_or_default();
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

/// Sends the turn, with its history and its deadline (UTC), to the worker.
pub(in crate::worker) fn deliver(
    deps: &Deps,
    link: &mut impl Link,
    job: &Job,
    told: ToldHistory,
) -> Result<(), SendError> {
    let cap_left = job.clocks.cap_left(Instant::now());
    let deadline = deps.store.clock().now() + TimeDelta::from_std(cap_left).unwrap_or(TimeDelta::MAX);
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
