//! The claim of a turn by this replica.

use super::assignment::Assignment;
use crate::id::{ConversationId, TurnId, WorkerId};

/// A turn that this replica has claimed.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The turn.
    pub turn: TurnId,
    /// The turn's conversation.
    pub conversation: ConversationId,
    /// The number of the attempt, which fences every write.
    pub epoch: i32,
    /// `seq` of the newest event.
    pub last_seq: i32,
    /// The number of the conversation's worker: a warm worker may serve the turn only if the numbers match.
    pub generation: i64,
    /// Milliseconds left until the turn's cap.
    pub cap_left_ms: i64,
    /// Milliseconds since the turn became the head of its conversation's line.
    pub waited_ms: i64,
    /// How far the turn is.
    pub phase: Phase,
    /// What the turn's worker is given.
    pub assignment: Assignment,
}

/// How far a turn was when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The turn needs a worker.
    Starting,
    /// The turn is `running` for this worker, which has not received it yet.
    Running(WorkerId),
    /// The turn is `running` for a worker that will never receive it.
    Forsaken,
}

/// The data of `started`. `worker` is `None` if an input guard stops the turn before any worker starts.
pub(in crate::store) fn started_by(worker: impl Into<Option<WorkerId>>) -> String {
    let worker: Option<WorkerId> = worker.into();
    serde_json::json!({ "worker_id": worker }).to_string()
}
