//! Guards as a spec names them: checks of an input before anything runs. Their cost limits are in [`super::guards`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A check of the input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Guard {
    /// Refuses an input with more characters than `limit`.
    MaxChars {
        /// The longest accepted input, in characters.
        limit: u32,
        /// The text that the client gets.
        notice: Option<String>,
    },
    /// Refuses an input that matches the pattern.
    DenyRegex {
        /// A regular expression in the syntax of the `regex` crate. The compiled size is bounded: large counted
        /// repetitions are refused.
        #[schema(max_length = 4096)]
        pattern: String,
        /// The text that the client gets.
        notice: Option<String>,
    },
}

impl Guard {
    /// The text that the client gets when this guard stops an input.
    pub(super) fn notice(&self) -> &str {
        match self {
            Guard::MaxChars { notice, .. } => notice.as_deref().unwrap_or("Your message is too long."),
            Guard::DenyRegex { notice, .. } => notice.as_deref().unwrap_or("Your message was not accepted."),
        }
    }
}
