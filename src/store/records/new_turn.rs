//! A turn that is to be accepted, and what became of it.

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
    /// Refuse it.
    Reject,
    /// Cancel what is before it.
    Interrupt,
}

impl IfBusy {
    /// What the acceptance itself must know; an interrupt comes after it.
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
    /// Its id, minted by the caller, so that a repeat after an unknown commit is harmless.
    pub id: TurnId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Whether the conversation is made with it.
    pub is_new_conversation: bool,
    /// Its agent and the revision it runs with.
    pub agent: Agent,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// JSON, the client's own.
    pub metadata: Option<String>,
    /// W3C trace context.
    pub traceparent: String,
    /// The turn it repeats.
    pub retry_of: Option<TurnId>,
    /// The client's key and the hash of its request.
    pub idempotency: Option<(String, String)>,
    /// What to do when the conversation is busy.
    pub if_busy: IfBusy,
    /// Most turns in flight in one conversation.
    pub depth_max: u32,
    /// Most turns queued in all conversations.
    pub queue_max: u32,
}

/// A place on this replica for a turn that is about to be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimOffer {
    /// The generation of its conversation's own warm worker here, where there is one.
    pub generation: Option<i64>,
    /// That worker or a shared one, where it is ready: the turn is `running` from the start, and the worker
    /// receives it when the commit is known. `None`: one is to be found.
    pub worker: Option<WorkerId>,
}

/// A turn that is durable.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The turn: the new one, or the one that the key made before.
    pub id: TurnId,
    /// Whether it had been accepted before.
    pub is_repeat: bool,
    /// Its place in its conversation, from 1.
    pub ordinal: i64,
    /// When it was accepted; of a repeat, when it was asked for again.
    pub at: DateTime<Utc>,
    /// The claim, where this replica holds the turn.
    pub claim: Option<Claim>,
}

impl Accepted {
    /// Whether a worker has it since the very commit.
    pub fn is_running(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| matches!(claim.phase, Phase::Running(_)))
    }
}

/// What became of one turn: accepted, or [`StoreError::Refused`] with `LW404`, `LW409`, `LW412` (the
/// agent has a newer revision), `LW422` or `LW429`.
pub type Verdict = Result<Accepted, StoreError>;
