//! A turn to be accepted, and the result.

use chrono::{DateTime, Utc};

use super::{
    agent::Agent,
    claim::{Claim, Phase},
};
use crate::{
    id::{ConversationId, TurnId, WorkerId},
    store::error::StoreError,
};

/// What to do with a turn whose conversation is busy.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum IfBusy {
    /// Wait in line.
    #[default]
    Queue,
    /// Refuse the turn.
    Reject,
    /// Cancel the turns before it.
    Interrupt,
}

impl IfBusy {
    /// What `lw_accept_v1` has to know. An interrupt is made after the acceptance.
    pub(in crate::store) const fn as_str(self) -> &'static str {
        match self {
            IfBusy::Reject => "reject",
            IfBusy::Queue | IfBusy::Interrupt => "queue",
        }
    }
}

/// A turn to be accepted.
#[derive(Debug, Clone)]
pub struct NewTurn {
    /// The turn's id, minted by the caller so that a repeat after an unknown commit is harmless.
    pub id: TurnId,
    /// The turn's conversation.
    pub conversation: ConversationId,
    /// Whether the conversation is made with this turn.
    pub is_new_conversation: bool,
    /// The agent at the revision that the turn runs with.
    pub agent: Agent,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// JSON, the client's own.
    pub metadata: Option<String>,
    /// W3C trace context.
    pub traceparent: String,
    /// The turn that this one retries.
    pub retry_of: Option<TurnId>,
    /// The idempotency key, and the hash of the request.
    pub idempotency: Option<(String, String)>,
    /// What to do if the conversation is busy.
    pub if_busy: IfBusy,
    /// Most turns in flight in one conversation.
    pub depth_max: u32,
    /// Most queued turns in all conversations.
    pub queue_max: u32,
}

/// A slot on this replica for a turn that is about to be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimOffer {
    /// The generation of the conversation's warm worker here, if there is one.
    pub generation: Option<i64>,
    /// A ready worker, the conversation's own or a shared one: the turn is `running` from the start, and the worker
    /// receives it once the commit is known. `None`: a worker has to be found or started.
    pub worker: Option<WorkerId>,
}

/// A turn that is committed.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The turn: the new one, or an earlier one with the same idempotency key.
    pub id: TurnId,
    /// Whether the turn was accepted before.
    pub is_repeat: bool,
    /// The turn's number within its conversation, from 1.
    pub ordinal: i64,
    /// When the turn was accepted; for a repeat, the time of the repeat.
    pub at: DateTime<Utc>,
    /// The claim, if this replica holds the turn.
    pub claim: Option<Claim>,
}

impl Accepted {
    /// Whether the turn was claimed for a ready worker in the same commit.
    pub fn is_running(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| matches!(claim.phase, Phase::Running(_)))
    }
}

/// The result for one turn: accepted, or [`StoreError::Refused`].
pub type Verdict = Result<Accepted, StoreError>;
