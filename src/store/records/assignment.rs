//! The assignment of a turn: what its worker is given. The history is in [`crate::store::tables::past`].

/// What a turn's worker is given.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The agent's name.
    pub agent: String,
    /// The revision that the turn was accepted with.
    pub agent_revision: i32,
    /// The turn's number within its conversation.
    pub ordinal: i64,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// W3C trace context.
    pub traceparent: String,
}
