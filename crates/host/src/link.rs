//! A turn's link to its worker: how a turn speaks and hears, whatever else the worker serves.

use std::{future::Future, time::Duration};

use super::{
    process::{Heard, SendError},
    protocol::messages::ToWorker,
};
use lastword_words::id::{TurnId, WorkerId};

/// A turn's line to its worker and back. Brings what the worker says of the turn, in order, and after that how the worker
/// ended (I7). A new kind of worker implements this trait in a folder of its own.
pub trait Link: Send + Sync {
    /// The worker at the other end.
    fn worker(&self) -> WorkerId;

    /// What the worker says or does next. Cancel-safe. As long as nobody calls it the worker is held back.
    fn recv(&mut self) -> impl Future<Output = Heard> + Send;

    /// Hands a message to the worker's queue. Never blocks.
    ///
    /// # Errors
    /// Nothing of the message was sent.
    fn send(&mut self, message: &ToWorker) -> Result<(), SendError>;

    /// The turn that this very worker served before, in this conversation. `None` where the worker is not relied on to
    /// remember a turn.
    fn last_turn(&self) -> Option<TurnId> {
        None
    }

    /// The end of the worker's stderr. `None` where the text may speak of other conversations.
    fn stderr_tail(&self) -> Option<String> {
        None
    }

    /// The total time for which the worker could not be heard, since others that it serves had too much to say.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    /// An upper bound of [`Link::waited`], which includes what a remote worker has not reported yet.
    fn may_have_waited(&self) -> Duration {
        self.waited()
    }

    /// The turn is at its end, and a worker of many turns has room for another: later words on this turn are late. A worker
    /// that has not stopped is told to, and is given no more turns.
    fn hang_up(&mut self, _has_stopped: bool) {}

    /// This many messages of the worker are committed, in total.
    fn acknowledge(&self, _messages: u64) {}

    /// The last word is written; `messages`: the number of the worker's message that ended the turn, where one did.
    fn note_end(&mut self, _messages: Option<u64>) {}

    /// The turn's authority is over (I11): ends a worker that serves this turn alone.
    fn kill(&mut self) {}
}

/// A link to a process of this host.
pub trait ProcessLink: Link {
    /// Hands a message that is written already to the worker's queue; a newline is its last byte, and its only one.
    ///
    /// # Errors
    /// Nothing of the message was sent.
    fn send_line(&mut self, line: Vec<u8>) -> Result<(), SendError>;
}
