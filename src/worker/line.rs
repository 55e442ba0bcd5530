//! A turn's line to its worker: how a turn speaks and hears, whoever else its worker serves.
//!
//! ```text
//! run ─ Line::Own ───────────────────────────────► a conversation's process
//! run ─ Line::Shared ─ Extension ─ Switchboard ──► a process of many turns
//! run ─ Line::Remote ─ rendezvous ◄── HTTP ──────── a worker that calls
//! ```
//! A line brings what the worker says of its turn, in order, and how the worker ended after that (I7).

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{
    life::{Worker, is_dead},
    process::{Heard, SendError},
    remote::Remote,
    start::Obstacle,
    switchboard::{Stage, Standing, Switchboard},
    wire::ToWorker,
};
use crate::id::{TurnId, WorkerId};

/// One turn's way to its worker and back.
pub(super) enum Line<'a> {
    /// The process itself: it serves one conversation, one turn after another.
    Own(&'a mut Worker),
    /// One of many that a shared worker has.
    Shared(&'a mut Extension),
    /// What a remote worker leaves at the rendezvous, and finds there.
    Remote(&'a mut Remote),
}

impl Line<'_> {
    pub(super) fn worker(&self) -> WorkerId {
        match self {
            Line::Own(worker) => worker.id,
            Line::Shared(extension) => extension.worker(),
            Line::Remote(remote) => remote.line().worker(),
        }
    }

    /// What the worker says or does next. Cancel-safe; who does not call it holds the worker back.
    pub(super) async fn recv(&mut self) -> Heard {
        match self {
            Line::Own(worker) => worker.process.recv().await,
            Line::Shared(extension) => extension.recv().await,
            Line::Remote(remote) => remote.recv().await,
        }
    }

    /// Hands a message to the worker's queue. Never blocks.
    pub(super) fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        match self {
            Line::Own(worker) => worker.process.send(message),
            Line::Shared(extension) => extension.send(message),
            Line::Remote(remote) => remote.send(message),
        }
    }

    /// The turn that this very worker served before, in this conversation. A shared worker is not
    /// relied on to remember one; a remote one knows best itself.
    pub(super) fn last_turn(&self) -> Option<TurnId> {
        match self {
            Line::Own(worker) => worker.last_turn,
            Line::Shared(_) | Line::Remote(_) => None,
        }
    }

    /// The end of the worker's stderr. A shared worker's may speak of other conversations.
    pub(super) fn stderr_tail(&self) -> Option<String> {
        match self {
            Line::Own(worker) => Some(worker.process.stderr_tail()),
            Line::Shared(_) | Line::Remote(_) => None,
        }
    }

    /// For how long, in all, the worker could not be heard because others that it serves had too much
    /// to hear.
    pub(super) fn waited(&self) -> Duration {
        match self {
            Line::Own(_) => Duration::ZERO,
            Line::Shared(extension) => extension.switchboard.waited(),
            Line::Remote(remote) => remote.line().waited(),
        }
    }

    /// The same, at most: what a worker that calls has not said yet included.
    pub(super) fn may_have_waited(&self) -> Duration {
        match self {
            Line::Own(_) | Line::Shared(_) => self.waited(),
            Line::Remote(remote) => remote.line().may_have_waited(),
        }
    }

    /// The turn is at its end, and a shared worker has room for another one: what it says of this one
    /// from now on is late. Where it may go on with it, it is told to stop, and given no more turns.
    pub(super) fn hang_up(&mut self, has_stopped: bool) {
        if let Line::Shared(extension) = self {
            if !has_stopped {
                // First this: no turn may take the room.
                extension.switchboard.give_up(extension.turn);
            }
            extension.hang_up();
        }
    }

    /// So many messages of the worker are committed, in all. Only a remote one waits to hear it.
    pub(super) fn acknowledge(&self, messages: u64) {
        if let Line::Remote(remote) = self {
            remote.line().acknowledge(messages);
        }
    }

    /// The last word is written; where it was the worker's own, with the message of this number.
    pub(super) fn note_end(&mut self, messages: Option<u64>) {
        if let Line::Remote(remote) = self {
            messages.into_iter().for_each(|messages| remote.line().acknowledge(messages));
            remote.note_end();
        }
    }

    /// The turn's authority is over (I11). A shared worker serves others; it was told at the end of this
    /// line, and a remote one learns it at its next call.
    pub(super) fn kill(&mut self) {
        if let Line::Own(worker) = self {
            worker.process.kill();
        }
    }
}

/// A turn's line to a shared worker. Its drop makes room there for another turn.
#[derive(Debug)]
pub(super) struct Extension {
    switchboard: Switchboard,
    turn: TurnId,
    unheard: mpsc::Receiver<Heard>,
    stage: watch::Receiver<Stage>,
    /// The worker's process id, where nobody has talked to it for a while.
    idle_pid: Option<i32>,
    /// Whether it was told that the worker says nothing more.
    is_closed: bool,
    /// Whether the worker has received anything of the turn.
    has_sent: bool,
}

impl Extension {
    pub(super) fn new(
        switchboard: Switchboard,
        turn: TurnId,
        unheard: mpsc::Receiver<Heard>,
        idle_pid: Option<i32>,
    ) -> Self {
        let stage = switchboard.stage();
        Extension { switchboard, turn, unheard, stage, idle_pid, is_closed: false, has_sent: false }
    }

    pub(super) fn worker(&self) -> WorkerId {
        self.switchboard.worker()
    }

    /// Waits until the worker can take the turn; false where it is gone and another one may. Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<bool, Obstacle> {
        let is_past_start = |stage: &Stage| !matches!(stage, Stage::Starting);
        let stage = self.stage.wait_for(is_past_start).await.map(|stage| stage.clone());
        match stage {
            Ok(Stage::Ready) if !self.is_alive() => {
                // Its guard has not told yet.
                self.switchboard.retire(Standing::Condemned);
                Ok(false)
            }
            Ok(Stage::Ready) => Ok(true),
            Ok(Stage::Refused { message, detail }) => Err(Obstacle::Failed { message, detail }),
            Ok(Stage::Lacking { lack, detail }) => Err(Obstacle::Lacks { lack, detail }),
            Ok(_) | Err(_) => Ok(false),
        }
    }

    /// Whether the worker is there though nobody has talked to it for a while.
    pub(super) fn is_alive(&self) -> bool {
        !self.idle_pid.is_some_and(is_dead)
    }

    async fn recv(&mut self) -> Heard {
        if let Some(heard) = self.unheard.recv().await {
            return heard;
        }
        // All that was said has been heard; the stage tells why there is no more.
        let is_closed = self.is_closed;
        let is_told = |stage: &Stage| match stage {
            Stage::Faulty(_) | Stage::Exited(_) => true,
            Stage::Closed => !is_closed,
            _ => false,
        };
        match self.stage.wait_for(is_told).await.map(|stage| stage.clone()) {
            Ok(Stage::Faulty(error)) => Heard::Protocol(error),
            Ok(Stage::Exited(exit)) => Heard::Exited(exit),
            Ok(_) | Err(_) => {
                self.is_closed = true;
                Heard::Closed
            }
        }
    }

    /// As if the worker had received its turn.
    #[cfg(test)]
    pub(super) fn served(mut self) -> Self {
        self.has_sent = true;
        self
    }

    fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        let sent = self.switchboard.send(message);
        self.has_sent |= sent.is_ok();
        sent
    }

    fn hang_up(&mut self) {
        self.switchboard.disconnect(self.turn, self.has_sent);
        self.unheard.close();
        while let Ok(late) = self.unheard.try_recv() {
            self.switchboard.note_late(self.turn, &late);
        }
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.hang_up();
    }
}
