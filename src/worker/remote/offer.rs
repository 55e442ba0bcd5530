//! The hand-over of a turn to a remote worker: offered, taken, `running`, begun.
//!
//! Keeps I10: the worker may begin when its take request is answered, which happens after `running` is committed.
//! An offer that is not taken within [`TAKE_MAX`] goes back to the queue untouched.

use std::time::Duration;

use tokio::time::timeout;

use super::link::RemoteLink;
use crate::{
    failure::Code,
    host::{process::SendError, unless_called_off},
    store::warn_of,
    telemetry::metrics,
    worker::{
        deps::Deps,
        owner::not_started,
        turn::{Account, Job, deliver, give_back, history, speak, start, undelivered},
    },
};

/// How long an offer waits for its worker.
const TAKE_MAX: Duration = Duration::from_secs(5);

/// Offers the turn and waits until the worker takes it. Returns the `seq` of `started`. `None`: the turn has
/// ended, was given back or is no longer held here, and no worker has begun.
pub(super) async fn hand_over(deps: &Deps, link: &mut RemoteLink, job: &mut Job) -> Option<i32> {
    let history = history(deps, link, job).await?;
    match deliver(deps, link, job, history) {
        Ok(()) => {}
        Err(SendError::Closed) => {
            give_back(deps, &job.claim, "drain").await;
            return None;
        }
        Err(why) => {
            undelivered(deps, job, job.claim.last_seq, why).await;
            return None;
        }
    }
    let line = link.line().clone();
    let taking = async { Ok(timeout(TAKE_MAX, line.taken()).await.is_ok()) };
    match unless_called_off(job, taking).await {
        Ok(true) => {}
        Ok(false) => {
            not_taken(deps, job).await;
            return None;
        }
        Err(obstacle) => {
            not_started(deps, job, obstacle, None).await;
            return None;
        }
    }
    let base = start(deps, line.worker, job).await?;
    line.begin();
    Some(base)
}

/// Gives the turn back to the queue, or fails it after three attempts.
async fn not_taken(deps: &Deps, job: &Job) {
    let claim = &job.claim;
    tracing::warn!(waited = ?TAKE_MAX, "the worker did not take the offered turn in time");
    deps.running.release(claim);
    match deps.store.release(claim.turn, claim.epoch, true).await {
        Ok(true) => metrics::requeued("not_taken"),
        Ok(false) => {
            let account = Account::unstarted(claim, Some(job));
            let word = account.failure(Code::WorkerLost, "No worker took your request.", None);
            speak(deps, claim, claim.last_seq, word).await;
        }
        // The next `settle` pass gives the turn back.
        Err(why) => warn_of!(why, "the turn could not be given back yet"),
    }
}
