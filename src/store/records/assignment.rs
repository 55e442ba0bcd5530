//! Assignments: what a worker is handed with a turn. Its conversation's past is in [`crate::store::tables::past`].

/// What a turn's worker is handed.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The agent's name.
    pub agent: String,
    /// The revision the turn was accepted with.
    pub agent_revision: i32,
    /// Place in the conversation.
    pub ordinal: i64,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// W3C trace context.
    pub traceparent: String,
}
