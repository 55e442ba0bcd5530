//! Turns: their status and the object that clients see.
//!
//! ```text
//! queued ──► running ──► completed | failed | cancelled
//!    └──────────────────►            failed | cancelled
//! ```
//! A turn that waits for its worker to get ready is still `queued`: no worker has received it.

use std::{borrow::Cow, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{event::Kind, json::Raw};

/// The state of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted; no worker has received it.
    Queued,
    /// A worker has it.
    Running,
    /// The worker finished the answer.
    Completed,
    /// The turn ended in an error.
    Failed,
    /// Somebody cancelled the turn.
    Cancelled,
}

impl Status {
    /// Every status, in the order in which a turn has them.
    pub const ALL: [Status; 5] =
        [Status::Queued, Status::Running, Status::Completed, Status::Failed, Status::Cancelled];

    /// The status' name in SQL, JSON, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether the turn has had its last word.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no turn status.
#[derive(Debug, thiserror::Error)]
#[error("unknown turn status `{0}`")]
pub struct UnknownStatus(pub String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, UnknownStatus> {
        Status::ALL.into_iter().find(|s| s.as_str() == name).ok_or_else(|| UnknownStatus(name.to_owned()))
    }
}

/// The end of a turn: the kind of last word, and its fields.
#[derive(Debug, Clone, PartialEq)]
pub struct LastWord {
    /// `completed`, `failed` or `cancelled`.
    pub kind: Kind,
    /// The event's own fields: the text of one JSON object.
    pub data: String,
    /// The label in metrics and logs: a failure's code, or who cancelled the turn; empty for a completed turn.
    pub label: Cow<'static, str>,
}

/// Who cancelled a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelledBy {
    /// A call of the cancel route.
    Client,
    /// The client that asked for `on_disconnect: cancel` went away.
    Disconnect,
    /// A newer turn of the conversation asked for `if_busy: interrupt`.
    Interrupt,
    /// An operator, or the deletion of the conversation.
    Operator,
}

impl CancelledBy {
    /// The name in SQL, JSON, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            CancelledBy::Client => "client",
            CancelledBy::Disconnect => "disconnect",
            CancelledBy::Interrupt => "interrupt",
            CancelledBy::Operator => "operator",
        }
    }
}

/// A turn as clients see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Turn {
    /// `turn_…`
    pub id: String,
    /// `conv_…`
    pub conversation_id: String,
    /// The agent's name.
    pub agent: String,
    /// Place in its conversation, from 1.
    pub ordinal: i64,
    /// The turn's status. A newer release may add another word.
    #[schema(value_type = Status)]
    pub status: String,
    /// How many times a worker's host has taken the turn; 0 before the first.
    pub attempt: i32,
    /// When the turn was accepted.
    pub created_at: DateTime<Utc>,
    /// When a worker received the turn.
    pub started_at: Option<DateTime<Utc>>,
    /// When the turn got its last word.
    pub finished_at: Option<DateTime<Utc>>,
    /// The whole answer of a completed turn.
    pub text: Option<String>,
    /// The error of a failed turn.
    #[schema(value_type = Option<Object>)]
    pub error: Option<serde_json::Value>,
    /// The usage that the worker reported.
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Raw>,
    /// The metadata of the client's request.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Box<RawValue>>,
    /// The turn that this one repeats.
    pub retry_of: Option<String>,
    /// The path of the turn's events.
    pub events_url: String,
}

impl Turn {
    /// Whether the turn has had its last word.
    pub fn is_ended(&self) -> bool {
        self.finished_at.is_some()
    }
}
