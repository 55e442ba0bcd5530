//! A turn that this replica holds.

use super::assignment::Assignment;
use crate::id::{ConversationId, TurnId, WorkerId};

/// A turn that this replica has taken, with what its host must know at once.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Which turn.
    pub turn: TurnId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// The fencing number, and the attempt's number.
    pub epoch: i32,
    /// The newest event's `seq`.
    pub last_seq: i32,
    /// A warm worker may serve only where this is its own.
    pub generation: i64,
    /// Milliseconds left until the turn's cap.
    pub cap_left_ms: i64,
    /// Milliseconds since the turn came to the head of its line.
    pub waited_ms: i64,
    /// How far it is.
    pub phase: Phase,
    /// What its worker is handed.
    pub assignment: Assignment,
}

/// How far a turn was when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It needs a worker.
    Starting,
    /// It is `running`, for this worker, which has not received it.
    Running(WorkerId),
    /// It is `running`, for a worker that has not received it and never will.
    Forsaken,
}

/// The data of `started`; nobody starts a turn that a guard stops.
pub(in crate::store) fn started_by(worker: impl Into<Option<WorkerId>>) -> String {
    let worker: Option<WorkerId> = worker.into();
    serde_json::json!({ "worker_id": worker }).to_string()
}
