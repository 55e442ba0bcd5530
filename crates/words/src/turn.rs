//! Turns: their status and the object that clients see.
//!
//! ```text
//! queued ──► running ──► completed | failed | cancelled
//!    └──────────────────►            failed | cancelled
//! ```
//! A turn that waits for its worker to get ready is still `queued`: no worker has received it.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{event::Kind, json::Raw, word::Open};

crate::words! {
    /// The state of a turn.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Status in "turns.status" {
        /// Accepted; no worker has received it.
        Queued = "queued",
        /// A worker has it.
        Running = "running",
        /// The worker finished the answer.
        Completed = "completed",
        /// The turn ended in an error.
        Failed = "failed",
        /// Somebody cancelled the turn.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether the turn has had its last word.
    pub const fn is_terminal(self) -> bool {
        self.last_word().is_some()
    }

    /// The kind of the last word that led to this status.
    pub const fn last_word(self) -> Option<Kind> {
        match self {
            Status::Queued | Status::Running => None,
            Status::Completed => Some(Kind::Completed),
            Status::Failed => Some(Kind::Failed),
            Status::Cancelled => Some(Kind::Cancelled),
        }
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

crate::words! {
    /// Who cancelled a turn.
    #[derive(Default)]
    pub enum CancelledBy in "inflight.cancelled_by" {
        /// A call of the cancel route. Also said where the canceller is not known.
        #[default]
        Client = "client",
        /// The client that asked for `on_disconnect: cancel` went away.
        Disconnect = "disconnect",
        /// A newer turn of the conversation asked for `if_busy: interrupt`.
        Interrupt = "interrupt",
        /// An operator, or the deletion of the conversation.
        Operator = "operator",
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
    pub status: Open<Status>,
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
