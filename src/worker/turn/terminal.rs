//! The holder's last word of a turn: built from the run's state, written once, fenced by the turn's epoch.

use chrono::{DateTime, Utc};

use super::job::Job;
use crate::{
    agent::Retry,
    event::{Kind, NewEvent},
    failure::{Code, Failure},
    store::{claim::Claim, events::Finish, group_commit::Written},
    telemetry::{self, metrics},
    turn::{CancelledBy, LastWord},
    word::Open,
    worker::deps::Deps,
};

/// What a failure reports beside its code.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Account {
    attempt: i32,
    trace_id: Option<String>,
    is_retry_safe: bool,
    is_exposed: bool,
    pub(in crate::worker) started_at: Option<DateTime<Utc>>,
    pub(in crate::worker) last_progress_at: Option<DateTime<Utc>>,
}

impl Account {
    /// Of a turn that no worker has received.
    pub(in crate::worker) fn unstarted(claim: &Claim, job: Option<&Job>) -> Self {
        let spec = job.map(|job| &job.agent.spec);
        let traceparent = job.map(|job| job.claim.assignment.traceparent.as_str());
        Account {
            attempt: claim.epoch,
            trace_id: traceparent.and_then(telemetry::trace_id).map(str::to_owned),
            is_retry_safe: spec.is_some_and(|spec| spec.retry == Retry::Safe),
            is_exposed: spec.is_some_and(|spec| spec.expose_errors),
            started_at: None,
            last_progress_at: None,
        }
    }

    /// A failure as a last word. `detail` goes to the log, and to clients only if the agent exposes its errors.
    pub(in crate::worker) fn failure(&self, code: Code, message: &str, detail: Option<String>) -> LastWord {
        self.failure_as(code, message, detail, None)
    }

    /// Like [`failure`](Self::failure), with the worker's own word on whether a retry may help.
    pub(in crate::worker) fn failure_as(
        &self,
        code: Code,
        message: &str,
        detail: Option<String>,
        retryable: Option<bool>,
    ) -> LastWord {
        if let Some(detail) = &detail {
            tracing::warn!(code = code.as_str(), detail, "the turn fails");
        }
        let failure = Failure {
            message: message.to_owned(),
            is_retryable: retryable.unwrap_or(code.is_retryable()),
            is_safe_to_retry: self.started_at.is_none() || self.is_retry_safe,
            started_at: self.started_at,
            last_progress_at: self.last_progress_at,
            trace_id: self.trace_id.clone(),
            detail: detail.filter(|_| self.is_exposed),
            ..Failure::new(code, self.attempt)
        };
        failure.to_last_word()
    }
}

pub(in crate::worker) fn cancelled(by: &Open<CancelledBy>) -> LastWord {
    let data = serde_json::json!({ "by": by }).to_string();
    LastWord { kind: Kind::Cancelled, data, label: by.to_string().into() }
}

/// Writes the last word. Returns false if the turn is no longer held here.
pub(in crate::worker) async fn speak(deps: &Deps, claim: &Claim, base: i32, word: LastWord) -> bool {
    speak_after(deps, claim, base, Vec::new(), word).await
}

/// Commits the buffered events `said` together with the last word. If Postgres refuses them, only the last word
/// `internal` is written. Returns false if nothing was written.
pub(in crate::worker) async fn speak_after(
    deps: &Deps,
    claim: &Claim,
    base: i32,
    said: Vec<NewEvent>,
    word: LastWord,
) -> bool {
    let (kind, code) = (word.kind, word.label.clone());
    let finish = Finish { turn: claim.turn, epoch: claim.epoch, base, said, word };
    match deps.writer.finish(finish.clone()).await {
        Written::Done(_) => {
            metrics::last_words(kind, &code);
            tracing::info!(turn_id = %claim.turn, epoch = claim.epoch, %kind, %code, "last word");
            true
        }
        Written::LeaseLost => {
            metrics::leases_lost();
            tracing::warn!(turn_id = %claim.turn, epoch = claim.epoch, "lease lost: nothing was written");
            false
        }
        Written::Refused(why) => {
            tracing::error!(
                turn_id = %claim.turn, why,
                "a last word was refused; the turn fails with `internal`"
            );
            let failure = Failure::new(Code::Internal, claim.epoch).to_last_word();
            let finish = Finish { said: Vec::new(), word: failure, ..finish };
            matches!(deps.writer.finish(finish).await, Written::Done(_))
        }
    }
}
