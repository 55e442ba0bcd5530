//! The hand-over of a turn to a remote worker: offered, taken, `running`, begun.
//!
//! Keeps I10: a worker begins when its taking of the turn is answered, which is after `running` is
//! committed. Until it has taken the turn nobody has; an offer that is not taken goes back untouched.

use tokio::time::timeout;

use super::line::TAKE_MAX;
use crate::{
    failure::Code,
    store::warn_of,
    telemetry::metrics,
    worker::{
        begin::give_back,
        ending::{Account, speak},
        hand_over::{history, send, start, undelivered},
        host::Host,
        job::Job,
        line::Line,
        process::SendError,
        start::{self, unless_interrupted},
    },
};

/// Offers the turn, unless its worker knows of it, and waits until it is taken; the `seq` of `started`. `None`:
/// the turn has ended, was given back, or is not ours any more, and no worker has begun with it.
pub(in crate::worker) async fn hand_over(host: &Host, line: &mut Line<'_>, job: &mut Job) -> Option<i32> {
    let history = history(host, line, job).await?;
    match send(host, line, job, history) {
        Ok(()) => {}
        Err(SendError::Closed) => {
            give_back(host, &job.claim, "drain").await;
            return None;
        }
        Err(why) => {
            let (code, message) = undelivered(why);
            let account = Account::unstarted(&job.claim, Some(job));
            let word = account.failure(code, message, Some(why.to_string()));
            speak(host, &job.claim, job.claim.last_seq, word).await;
            return None;
        }
    }
    let Line::Remote(remote) = line else { return None };
    let line = remote.line().clone();
    let taking = async { Ok(timeout(TAKE_MAX, line.taken()).await.is_ok()) };
    match unless_interrupted(job, taking).await {
        Ok(true) => {}
        Ok(false) => {
            not_taken(host, job).await;
            return None;
        }
        Err(obstacle) => {
            start::tell(host, job, obstacle, None).await;
            return None;
        }
    }
    let base = start(host, line.worker(), job).await?;
    line.begin();
    Some(base)
}

/// Gives the turn back, or, after three attempts, up.
async fn not_taken(host: &Host, job: &Job) {
    let claim = &job.claim;
    tracing::warn!(waited = ?TAKE_MAX, "the worker did not take the turn that it was offered");
    host.run_list().forgo(claim);
    match host.store().release(claim.turn, claim.epoch, true).await {
        Ok(true) => metrics::requeued("not_taken"),
        Ok(false) => {
            let account = Account::unstarted(claim, Some(job));
            let word = account.failure(Code::WorkerLost, "No worker took your request.", None);
            speak(host, claim, claim.last_seq, word).await;
        }
        // The next comparison of what is held with what runs gives it back.
        Err(why) => warn_of!(why, "not given back yet"),
    }
}
