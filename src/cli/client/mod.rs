//! The command line as a client of the native HTTP API.
//!
//! Owns the exit codes that scripts rely on. Knows the gateway only over HTTP, so it works against any deployment
//! as it does against `lastword dev`.

pub mod agents;
pub mod apply;
pub mod chat;
pub mod conversations;
pub mod replicas;
pub mod turns;
pub mod worker_tokens;
pub mod workers;

mod address;
mod table;
mod transcript;
mod watch;

use std::process::ExitCode;

use lastword_client::gateway::CallError;

pub use address::TokenArgs;

/// The turn completed.
const COMPLETED: u8 = 0;
/// The turn failed, or the gateway refused an operator's request.
const FAILED: u8 = 1;
/// The request was wrong: an unknown agent, a bad token, a missing argument.
const USAGE: u8 = 2;
/// No gateway could be reached, or the stream cannot be resumed.
const UNREACHABLE: u8 = 3;
/// The turn was cancelled, or the person left.
const CANCELLED: u8 = 130;

/// The exit code of an error that no command has handled.
pub fn exit_code(why: &anyhow::Error) -> ExitCode {
    match why.downcast_ref::<CallError>() {
        Some(CallError::Unreachable { .. }) => ExitCode::from(UNREACHABLE),
        Some(CallError::Setup(_)) => ExitCode::from(USAGE),
        Some(CallError::Refused(_)) | None => ExitCode::from(FAILED),
    }
}
