//! What a worker is told of its conversation's past: `docs/WORKERS.md` has the fields.

use serde::Serialize;

use lastword_words::{id::TurnId, json::Raw, turn::Status};

/// One message of a conversation's past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// `user` or `assistant`.
    pub role: String,
    /// What was said; of an answer that was cut off, as far as it came.
    pub text: String,
    /// The turn in which it was said.
    pub turn_id: TurnId,
    /// How that turn ended: `completed`, `failed` or `cancelled`.
    pub status: Status,
    /// Of a failed turn: why, as its last word has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Of a cancelled turn: who asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What the user's message had beside its text, as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Raw>,
    /// With the user's message: what the agent asked in the turn, and what was answered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<PastQuestion>,
    /// Whether its text is shortened in its middle, or attachments or questions of it are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shortened: bool,
}

/// A question of the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastQuestion {
    /// The worker's name for it, or the gateway's.
    pub ask_id: String,
    /// The question.
    pub prompt: String,
    /// What might be answered, as the worker sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Raw>,
    /// The answer as the client gave it, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Raw>,
}

/// What of a conversation's past a worker is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Older turns that are left out.
    pub turns: u64,
    /// Turns that are told in part.
    pub shortened: u32,
}

impl Omitted {
    /// Whether there is anything.
    pub fn is_any(&self) -> bool {
        self.turns > 0 || self.shortened > 0
    }
}
