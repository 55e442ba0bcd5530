//! Failures: every way in which a turn can fail, as data.
//!
//! Owns the codes and the messages for users. Refuses operator detail: an exit code is shown, stderr and paths are
//! not (they go to logs and to the operators' routes).

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use crate::{event::Kind, turn::LastWord};

crate::words! {
    /// Why a turn failed.
    pub enum Code in "workers.end_code" {
        /// The set-up failed, the worker ended before it took the turn, or the startup timeout passed.
        WorkerStartupFailed = "worker_startup_failed",
        /// The worker died in the middle of the turn.
        WorkerExited = "worker_exited",
        /// The progress timeout passed.
        WorkerUnresponsive = "worker_unresponsive",
        /// The worker sent a message that breaks the protocol, or too much output.
        WorkerProtocol = "worker_protocol",
        /// The gateway lost contact with the remote worker.
        WorkerLost = "worker_lost",
        /// The replica that ran the turn was lost.
        ReplicaLost = "replica_lost",
        /// The worker itself reported an error.
        AgentError = "agent_error",
        /// The worker finished without any output.
        EmptyReply = "empty_reply",
        /// No replica claimed the turn before the queue timeout.
        QueueTimeout = "queue_timeout",
        /// The worker's question was not answered before the answer timeout.
        AnswerTimeout = "answer_timeout",
        /// The turn took longer than the agent's cap.
        TurnTimeout = "turn_timeout",
        /// The replica drained, and the turn was still running at the drain deadline.
        Interrupted = "interrupted",
        /// An input guard stopped the turn.
        GuardBlocked = "guard_blocked",
        /// The input does not fit into its worker's line.
        InputTooLong = "input_too_long",
        /// The conversation's history cannot be read.
        HistoryUnavailable = "history_unavailable",
        /// A fault of the gateway.
        Internal = "internal",
    }
}

impl Code {
    /// Whether a retry may help.
    pub const fn is_retryable(self) -> bool {
        !matches!(
            self,
            Code::GuardBlocked
                | Code::InputTooLong
                | Code::WorkerProtocol
                | Code::EmptyReply
                | Code::AgentError
        )
    }

    /// The default message for users.
    pub const fn message(self) -> &'static str {
        match self {
            Code::WorkerStartupFailed => "The worker for this agent could not be started in time.",
            Code::WorkerExited => "The worker handling your request stopped unexpectedly.",
            Code::WorkerUnresponsive => "The worker handling your request stopped making progress.",
            Code::WorkerProtocol => {
                "The worker handling your request sent something that could not be understood."
            }
            Code::WorkerLost => "The connection to the worker handling your request was lost.",
            Code::ReplicaLost => "The server that ran your request is gone.",
            Code::AgentError => "The agent reported an error.",
            Code::EmptyReply => "The agent finished without an answer.",
            Code::QueueTimeout => "No worker was free in time to take your request.",
            Code::AnswerTimeout => "The agent's question was not answered in time.",
            Code::TurnTimeout => "Your request took longer than this agent allows.",
            Code::Interrupted => "The server was restarted before your request was finished.",
            Code::InputTooLong => "Your message is too long for this agent's worker.",
            Code::HistoryUnavailable => "The history of this conversation could not be read.",
            Code::GuardBlocked => "Your message was not accepted by this agent's rules.",
            Code::Internal => "Something went wrong in the gateway.",
        }
    }
}

/// A failed turn's error, as its `failed` event carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The reason.
    pub code: Code,
    /// Text for the user.
    pub message: String,
    /// Whether a retry may help.
    pub is_retryable: bool,
    /// Whether no worker received the turn, or the agent declares that repeating is harmless.
    pub is_safe_to_retry: bool,
    /// The attempt that failed.
    pub attempt: i32,
    /// When a worker received the turn.
    pub started_at: Option<DateTime<Utc>>,
    /// When the worker last sent an event.
    pub last_progress_at: Option<DateTime<Utc>>,
    /// The id of the turn's trace.
    pub trace_id: Option<String>,
    /// More detail for operators; clients see it only if the agent's `expose_errors` is on.
    pub detail: Option<String>,
}

impl Failure {
    /// A failure with the code's default message, before any worker received the turn.
    pub fn new(code: Code, attempt: i32) -> Self {
        Failure {
            code,
            message: code.message().to_owned(),
            is_retryable: code.is_retryable(),
            is_safe_to_retry: true,
            attempt,
            started_at: None,
            last_progress_at: None,
            trace_id: None,
            detail: None,
        }
    }

    /// The last word for this failure.
    pub fn to_last_word(&self) -> LastWord {
        let time = |t: Option<DateTime<Utc>>| t.map(|t| t.to_rfc3339_opts(SecondsFormat::Micros, true));
        let mut error = json!({
            "code": self.code.as_str(),
            "message": self.message,
            "retryable": self.is_retryable,
            "safe_to_retry": self.is_safe_to_retry,
            "attempt": self.attempt,
            "started_at": time(self.started_at),
            "last_progress_at": time(self.last_progress_at),
            "trace_id": self.trace_id,
        });
        if let Some(detail) = &self.detail {
            error["detail"] = json!(detail);
        }
        LastWord {
            kind: Kind::Failed,
            data: json!({ "error": error }).to_string(),
            label: self.code.as_str().into(),
        }
    }
}
