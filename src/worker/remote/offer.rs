//! The hand-over of a turn to a remote worker: offered, taken, `running`, begun.
//!
//! Keeps I10: a worker begins when its taking of the turn is answered, which is after `running` is
//! committed. Until it has taken the turn nobody has; an offer that is not taken goes back untouched.

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

/// How long an offer waits until its worker takes the turn.
const TAKE_MAX: Duration = Duration::from_secs(5);

/// Offers the turn and waits until it is taken; the `seq` of `started`. `None`:
/// the turn has ended, was given back, or is not ours any more, and no worker has begun with it.
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
    let base = start(deps, line.worker(), job).await?;
    line.begin();
    Some(base)
}

/// Gives the turn back, or, after three attempts, up.
async fn not_taken(deps: &Deps, job: &Job) {
    let claim = &job.claim;
    tracing::warn!(waited = ?TAKE_MAX, "the worker did not take the turn that it was offered");
    deps.running().release(claim);
    match deps.store().release(claim.turn, claim.epoch, true).await {
        Ok(true) => metrics::requeued("not_taken"),
        Ok(false) => {
            let account = Account::unstarted(claim, Some(job));
            let word = account.failure(Code::WorkerLost, "No worker took your request.", None);
            speak(deps, claim, claim.last_seq, word).await;
        }
        // The next comparison of what is held with what runs gives it back.
        Err(why) => warn_of!(why, "not given back yet"),
    }
}
