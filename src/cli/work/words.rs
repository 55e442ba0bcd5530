//! What is said between a host of workers and the gateway, as JSON: `docs/decisions/0016` has the table.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    agent::Scope,
    id::{ConversationId, TurnId, WorkerId},
    text,
};

/// The answer to a registration.
#[derive(Debug, Clone, Deserialize)]
pub struct RegisteredHost {
    pub worker_id: WorkerId,
    /// Where the replica that answered is reached itself.
    pub url: String,
    pub agent: String,
    pub scope: Scope,
    pub idle_ttl_ms: u64,
    pub startup_ms: u64,
    pub memory_bytes: u64,
    pub processes: u32,
    /// Whether a beat may say for how long the pipe has waited.
    #[serde(default)]
    pub hears_waits: bool,
}

/// The answer to a wait for turns.
#[derive(Debug, Deserialize)]
pub struct OfferedTurns {
    pub turns: Vec<OfferedTurn>,
}

/// A turn that this host may take.
#[derive(Debug, Deserialize)]
pub struct OfferedTurn {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub epoch: i32,
    pub ordinal: i64,
    pub token: String,
    pub turn: Box<RawValue>,
}

impl OfferedTurn {
    /// The worker's `turn` message as a line. A process that served the turn before knows the history.
    pub fn line(&self, has_history: bool) -> Result<Vec<u8>, serde_json::Error> {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(self.turn.get())?;
        if has_history {
            fields.remove("history");
            fields.remove("history_omitted");
        }
        Ok(line(&serde_json::to_string(&fields)?))
    }
}

/// The answer to a beat.
#[derive(Debug, Deserialize)]
pub struct BeatReply {
    pub orders: Vec<OrderToPass>,
    pub over: Vec<TurnOver>,
    pub should_move: bool,
    pub should_stop: bool,
}

/// Something to pass on.
#[derive(Debug, Deserialize)]
pub struct OrderToPass {
    pub key: String,
    pub turn_id: TurnId,
    pub order: Box<RawValue>,
}

/// A turn that is not this host's any more.
#[derive(Debug, Deserialize)]
pub struct TurnOver {
    pub turn_id: TurnId,
    pub epoch: i32,
    pub code: String,
}

/// JSON text as one line with its newline.
pub fn line(json: &str) -> Vec<u8> {
    let mut line = text::one_line(json).into_owned().into_bytes();
    line.push(b'\n');
    line
}
