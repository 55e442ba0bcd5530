//! A turn's link to its worker, whatever else the worker serves.

use std::{future::Future, time::Duration};

use super::{
    process::{Heard, SendError},
    protocol::messages::ToWorker,
};
use lastword_words::id::{TurnId, WorkerId};

/// A turn's line to its worker and back. Delivers the worker's messages for the turn in order, then how the worker
/// ended (I7). A new runtime implements this trait in a folder of its own.
pub trait Link: Send + Sync {
    /// The worker at the other end.
    fn worker(&self) -> WorkerId;

    /// The worker's next message, or its end. Cancel-safe. While nobody calls `recv` the worker is held back.
    fn recv(&mut self) -> impl Future<Output = Heard> + Send;

    /// Queues a message for the worker. Never blocks.
    ///
    /// # Errors
    /// Nothing of the message was sent.
    fn send(&mut self, message: &ToWorker) -> Result<(), SendError>;

    /// The conversation's turn that this worker served before. `None` if the worker is not expected to remember
    /// it: the turn then comes with its history.
    fn last_turn(&self) -> Option<TurnId> {
        None
    }

    /// The end of the worker's stderr. `None` if the text may concern other conversations.
    fn stderr_tail(&self) -> Option<String> {
        None
    }

    /// Total time in which the worker could not be heard because other turns of the same worker had too much
    /// output.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    /// An upper bound of [`Link::waited`], including time that a remote worker has not reported yet.
    fn may_have_waited(&self) -> Duration {
        self.waited()
    }

    /// Ends the turn's line: a worker of many turns may take another, and later messages for this turn are late.
    /// If the worker has not stopped the turn, it is told to, and gets no more turns.
    fn hang_up(&mut self, _has_stopped: bool) {}

    /// The total number of the worker's messages that are committed.
    fn acknowledge(&self, _messages: u64) {}

    /// The last word is written. `messages`: the number of the message with which the worker ended the turn, if it
    /// did.
    fn note_end(&mut self, _messages: Option<u64>) {}

    /// Ends the turn's authority (I11): kills a worker that serves only this turn.
    fn kill(&mut self) {}

    /// Whether [`Link::kill`] ends the worker at once, so that no two attempts of a turn run side by side.
    fn ends_at_once(&self) -> bool {
        false
    }
}

/// A link to a process of this host.
pub trait ProcessLink: Link {
    /// Queues an encoded message. Its last byte is a newline, and its only one.
    ///
    /// # Errors
    /// Nothing of the message was sent.
    fn send_line(&mut self, line: Vec<u8>) -> Result<(), SendError>;
}
