//! Failures: every way a turn can fail, as data.
//!
//! Owns the codes and the words for the person who reads them. Refuses operator detail: exit codes
//! are said, stderr and paths are not (they go to logs and the operators' routes).

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use crate::{event::Kind, turn::LastWord};

/// Why a turn failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Set-up failed, or the worker ended before it took the turn, or the startup clock lapsed.
    WorkerStartupFailed,
    /// The worker died in the middle of the turn.
    WorkerExited,
    /// The progress clock lapsed.
    WorkerUnresponsive,
    /// The worker sent something that is not the protocol, or too much.
    WorkerProtocol,
    /// The remote worker is gone.
    WorkerLost,
    /// The replica that ran the turn is gone.
    ReplicaLost,
    /// The worker itself reported an error.
    AgentError,
    /// The worker finished without having said anything.
    EmptyReply,
    /// No replica took the turn in time.
    QueueTimeout,
    /// Nobody answered the worker's question in time.
    AnswerTimeout,
    /// The whole turn took too long.
    TurnTimeout,
    /// A deploy reached its drain deadline.
    Interrupted,
    /// An input guard stopped the turn.
    GuardBlocked,
    /// What the user said does not fit into its worker's line.
    InputTooLong,
    /// What was said before in the conversation cannot be read.
    HistoryUnavailable,
    /// A fault of the gateway's own.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 16] = [
        Code::WorkerStartupFailed,
        Code::WorkerExited,
        Code::WorkerUnresponsive,
        Code::WorkerProtocol,
        Code::WorkerLost,
        Code::ReplicaLost,
        Code::AgentError,
        Code::EmptyReply,
        Code::QueueTimeout,
        Code::AnswerTimeout,
        Code::TurnTimeout,
        Code::Interrupted,
        Code::GuardBlocked,
        Code::InputTooLong,
        Code::HistoryUnavailable,
        Code::Internal,
    ];

    /// The code's name everywhere outside Rust.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::WorkerStartupFailed => "worker_startup_failed",
            Code::WorkerExited => "worker_exited",
            Code::WorkerUnresponsive => "worker_unresponsive",
            Code::WorkerProtocol => "worker_protocol",
            Code::WorkerLost => "worker_lost",
            Code::ReplicaLost => "replica_lost",
            Code::AgentError => "agent_error",
            Code::EmptyReply => "empty_reply",
            Code::QueueTimeout => "queue_timeout",
            Code::AnswerTimeout => "answer_timeout",
            Code::TurnTimeout => "turn_timeout",
            Code::Interrupted => "interrupted",
            Code::GuardBlocked => "guard_blocked",
            Code::InputTooLong => "input_too_long",
            Code::HistoryUnavailable => "history_unavailable",
            Code::Internal => "internal",
        }
    }

    /// Whether asking again may help.
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

    /// What a person is told where nothing more exact is known.
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
            Code::HistoryUnavailable => "What was said before in this conversation could not be read.",
            Code::GuardBlocked => "Your message was not accepted by this agent's rules.",
            Code::Internal => "Something went wrong in the gateway.",
        }
    }
}

/// A failed turn's error, as its `failed` event carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Why.
    pub code: Code,
    /// Text for a person.
    pub message: String,
    /// Whether asking again may help.
    pub is_retryable: bool,
    /// Whether no worker received the turn, or the agent says that repeating is harmless.
    pub is_safe_to_retry: bool,
    /// The attempt that failed.
    pub attempt: i32,
    /// When a worker received the turn.
    pub started_at: Option<DateTime<Utc>>,
    /// When the worker last sent an event.
    pub last_progress_at: Option<DateTime<Utc>>,
    /// The trace to look for.
    pub trace_id: Option<String>,
    /// More for operators, shown only where the agent's `expose_errors` is on.
    pub detail: Option<String>,
}

impl Failure {
    /// A failure in the code's own words, before any worker received the turn.
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

    /// The last word that tells it.
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
