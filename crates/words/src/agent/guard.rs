//! Guards: checks of an input before anything is run, as a spec names them. What they may cost is in [`super::guards`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A check of the input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Guard {
    /// Refuses an input of more characters.
    MaxChars {
        /// The most that is let through.
        limit: u32,
        /// What the client is told.
        notice: Option<String>,
    },
    /// Refuses an input that matches.
    DenyRegex {
        /// A regular expression in the `regex` crate's syntax. What it compiles to is bounded: large counted
        /// repetitions are refused.
        #[schema(max_length = 4096)]
        pattern: String,
        /// What the client is told.
        notice: Option<String>,
    },
}

impl Guard {
    /// What the client is told where it stops an input.
    pub(super) fn notice(&self) -> &str {
        match self {
            Guard::MaxChars { notice, .. } => notice.as_deref().unwrap_or("Your message is too long."),
            Guard::DenyRegex { notice, .. } => notice.as_deref().unwrap_or("Your message was not accepted."),
        }
    }
}
