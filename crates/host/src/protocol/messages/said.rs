//! The history that a worker receives; `docs/WORKERS.md` describes the fields.

use serde::Serialize;

use lastword_words::{id::TurnId, json::Raw, turn::Status};

/// One message of a conversation's past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// `user` or `assistant`.
    pub role: String,
    /// The text; for an answer that was cut off, what had arrived.
    pub text: String,
    /// The turn of the message.
    pub turn_id: TurnId,
    /// How that turn ended: `completed`, `failed` or `cancelled`.
    pub status: Status,
    /// The code of a failed turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Who cancelled a cancelled turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Attachments of the user's message, as the client sent them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Raw>,
    /// With the user's message: the agent's questions in this turn, and their answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<PastQuestion>,
    /// Whether the text is shortened in its middle, or attachments or questions are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shortened: bool,
}

/// A past question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastQuestion {
    /// The question's id, from the worker or the gateway.
    pub ask_id: String,
    /// The question.
    pub prompt: String,
    /// Possible answers, as the worker sent them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Raw>,
    /// The answer as the client sent it, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Raw>,
}

/// What the history leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Older turns left out.
    pub turns: u64,
    /// Turns told in part.
    pub shortened: u32,
}

impl Omitted {
    /// Whether anything is left out.
    pub fn is_any(&self) -> bool {
        self.turns > 0 || self.shortened > 0
    }
}
