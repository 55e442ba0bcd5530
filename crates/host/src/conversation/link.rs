//! A turn's link to its conversation's own process.

use crate::{
    link::{Link, ProcessLink},
    process::{Heard, Process, SendError},
    protocol::messages::ToWorker,
    slots::Slot,
};

use lastword_words::id::{ConversationId, TurnId, WorkerId};

/// A worker that has reported `ready`.
#[derive(Debug)]
pub(super) struct OwnProcess {
    pub(super) worker: WorkerId,
    pub(super) process: Process,
    /// Dropped after `process`, so freed after the process has ended.
    pub(super) slot: Slot,
    pub(super) conversation: ConversationId,
    /// The turn served last; `None` for a new process, which needs the history.
    pub(super) last_turn: Option<TurnId>,
}

impl Link for OwnProcess {
    fn worker(&self) -> WorkerId {
        self.worker
    }

    async fn recv(&mut self) -> Heard {
        self.process.recv().await
    }

    fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        self.process.send(message)
    }

    fn last_turn(&self) -> Option<TurnId> {
        self.last_turn
    }

    fn stderr_tail(&self) -> Option<String> {
        Some(self.process.stderr_tail())
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    fn ends_at_once(&self) -> bool {
        true
    }
}

impl ProcessLink for OwnProcess {
    fn send_line(&mut self, line: Vec<u8>) -> Result<(), SendError> {
        self.process.inlet().send_line(line)
    }
}
