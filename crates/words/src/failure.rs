//! Failures: every way in which a turn can fail, as data.
//!
//! Owns the codes and the messages for users. Refuses operator detail: an exit code is shown, stderr and paths are
//! not (they go to logs and to the operators' routes).

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use crate::{event::Kind, turn::LastWord};

/// One row a code: what it means, its name, and the default message for users.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal, $message:literal;)*) => {
        /// Why a turn failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: [Code; 16] = [$(Code::$code,)*];

            /// The code's name in SQL, JSON, logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$code => $name,)* }
            }

            /// The default message for users.
            pub const fn message(self) -> &'static str {
                match self { $(Code::$code => $message,)* }
            }
        }
    };
}

codes! {
    /// The set-up failed, the worker ended before it took the turn, or the startup timeout passed.
    WorkerStartupFailed = "worker_startup_failed", "The worker for this agent could not be started in time.";
    /// The worker died in the middle of the turn.
    WorkerExited = "worker_exited", "The worker handling your request stopped unexpectedly.";
    /// The progress timeout passed.
    WorkerUnresponsive = "worker_unresponsive", "The worker handling your request stopped making progress.";
    /// The worker sent a message that breaks the protocol, or too much output.
    WorkerProtocol = "worker_protocol",
        "The worker handling your request sent something that could not be understood.";
    /// The gateway lost contact with the remote worker.
    WorkerLost = "worker_lost", "The connection to the worker handling your request was lost.";
    /// The replica that ran the turn was lost.
    ReplicaLost = "replica_lost", "The server that ran your request is gone.";
    /// The worker itself reported an error.
    AgentError = "agent_error", "The agent reported an error.";
    /// The worker finished without any output.
    EmptyReply = "empty_reply", "The agent finished without an answer.";
    /// No replica claimed the turn before the queue timeout.
    QueueTimeout = "queue_timeout", "No worker was free in time to take your request.";
    /// The worker's question was not answered before the answer timeout.
    AnswerTimeout = "answer_timeout", "The agent's question was not answered in time.";
    /// The turn took longer than the agent's cap.
    TurnTimeout = "turn_timeout", "Your request took longer than this agent allows.";
    /// The replica drained, and the turn was still running at the drain deadline.
    Interrupted = "interrupted", "The server was restarted before your request was finished.";
    /// An input guard stopped the turn.
    GuardBlocked = "guard_blocked", "Your message was not accepted by this agent's rules.";
    /// The input does not fit into its worker's line.
    InputTooLong = "input_too_long", "Your message is too long for this agent's worker.";
    /// The conversation's history cannot be read.
    HistoryUnavailable = "history_unavailable",
        "What was said before in this conversation could not be read.";
    /// A fault of the gateway.
    Internal = "internal", "Something went wrong in the gateway.";
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
