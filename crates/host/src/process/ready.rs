//! From a program that runs to a worker that said `ready`, for whoever started it.
//!
//! Launchers and libraries greet on stdout. Before `ready` such lines do no harm: they go to the worker's log, and where
//! `ready` does not come, the message says whose stdout is. From `ready` on every line is the protocol's.

use super::child::{Heard, Process};
use crate::protocol::{codec::Fault, messages::Message};

/// Lines that are no message, before `ready`.
const STRAYS_MAX: usize = 200;
const WHOSE_STDOUT: &str =
    "The worker wrote lines to stdout that are no messages: stdout is for the protocol, logs are for stderr.";

/// Why a worker is not ready.
#[derive(Debug)]
pub struct NotReady {
    /// For a person.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

/// Waits for the worker's `ready`. Has no deadline of its own.
///
/// # Errors
/// The worker ended, or said what no worker says before `ready`.
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

/// What to tell of a worker that was not ready in time, though its program runs.
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

/// A line of somebody who does not know the protocol, and no message that went wrong.
fn is_stray(fault: &Fault) -> bool {
    matches!(fault, Fault::NotJson | Fault::NotAnObject | Fault::NotUtf8 | Fault::RawNul)
}
