//! From a running program to a worker that has sent `ready`.
//!
//! Launchers and libraries may print greetings to stdout. Before `ready` such lines go to the worker's log, and if
//! `ready` never comes the error says that stdout belongs to the protocol. After `ready` every line must be a
//! message.

use super::child::{Heard, Process};
use crate::protocol::{codec::Fault, messages::Message};

/// Lines before `ready` that are tolerated though they are not messages.
const STRAYS_MAX: usize = 200;
const WHOSE_STDOUT: &str =
    "The worker wrote lines to stdout that are no messages: stdout is for the protocol, logs are for stderr.";

/// Why a worker is not ready.
#[derive(Debug)]
pub struct NotReady {
    /// For clients.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

/// Waits for the worker's `ready`, without a deadline of its own.
///
/// # Errors
/// The worker ended, or sent a message that is not allowed before `ready`.
pub async fn until_ready(process: &mut Process) -> Result<(), NotReady> {
    loop {
        match process.recv().await {
            Heard::Message(from) if from.message == Message::Ready => return Ok(()),
            Heard::Message(from) if from.message == Message::Beat => {}
            Heard::Message(_) => return Err(not_ready(process, "The worker spoke before it was ready.")),
            Heard::Protocol(error) if is_stray(&error.fault) && process.strays() < STRAYS_MAX => {
                process.note_stray(&error.excerpt);
            }
            Heard::Protocol(error) => {
                process.note_stray(&error.excerpt);
                return Err(not_ready(process, &error.to_string()));
            }
            Heard::Closed | Heard::Gone(_) => {}
            Heard::Exited(exit) => {
                let message = format!("The worker for this agent stopped while it was starting ({exit}).");
                return Err(not_ready(process, &message));
            }
        }
    }
}

/// The failure of a worker whose program runs but that was not ready in time.
pub fn lapsed(process: &Process) -> NotReady {
    let message = "The program of this agent runs, and has not said `ready` in time.";
    if process.strays() > 0 {
        return not_ready(process, message);
    }
    not_ready(
        process,
        &format!("{message} A program whose stdout is buffered must flush after each message."),
    )
}

fn not_ready(process: &Process, message: &str) -> NotReady {
    let message = match process.strays() {
        0 => message.to_owned(),
        _ => format!("{message} {WHOSE_STDOUT}"),
    };
    NotReady { message, detail: Some(process.stderr_tail()).filter(|tail| !tail.is_empty()) }
}

/// Whether the line is no message at all, rather than a faulty one.
fn is_stray(fault: &Fault) -> bool {
    matches!(fault, Fault::NotJson | Fault::NotAnObject | Fault::NotUtf8 | Fault::RawNul)
}
