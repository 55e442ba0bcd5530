//! A turn's lane: its link to a shared worker.
//!
//! A lane brings what the worker says of its turn, and, after all of that, how the worker ended (I7).

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::router::{RawLane, Stage, Standing, TurnRouter};
use crate::{
    link::{Link, ProcessLink},
    owner::Obstacle,
    process::{Heard, SendError, proc_tree::is_dead},
    protocol::messages::ToWorker,
};
use lastword_words::id::{TurnId, WorkerId};

/// A turn's lane to a shared worker. Its drop makes room there for another turn.
#[derive(Debug)]
pub struct Lane {
    router: TurnRouter,
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

impl Lane {
    pub(super) fn new(line: RawLane) -> Self {
        let RawLane { router, turn, unheard, idle_pid } = line;
        let stage = router.stage();
        Lane { router, turn, unheard, stage, idle_pid, is_closed: false, has_sent: false }
    }

    /// The worker.
    pub fn worker(&self) -> WorkerId {
        self.router.worker()
    }

    /// Waits until the worker can take the turn; false where it is gone and another one may. Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<bool, Obstacle> {
        let is_past_start = |stage: &Stage| !matches!(stage, Stage::Starting);
        let stage = self.stage.wait_for(is_past_start).await.map(|stage| stage.clone());
        match stage {
            Ok(Stage::Ready) if !self.is_alive() => {
                // Its guard has not told yet.
                self.router.retire(Standing::Condemned);
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

    /// As if the worker had received its turn.
    #[cfg(test)]
    pub(super) fn served(mut self) -> Self {
        self.has_sent = true;
        self
    }

    fn close(&mut self) {
        self.router.disconnect(self.turn, self.has_sent);
        self.unheard.close();
        while let Ok(late) = self.unheard.try_recv() {
            self.router.note_late(self.turn, &late);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link for Lane {
    fn worker(&self) -> WorkerId {
        self.router.worker()
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

    fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        let line = message.to_line().map_err(|_| SendError::Unwritable)?;
        self.send_line(line)
    }

    fn waited(&self) -> Duration {
        self.router.waited()
    }

    fn hang_up(&mut self, has_stopped: bool) {
        if !has_stopped {
            // First this: no turn may take the room.
            self.router.give_up(self.turn);
        }
        self.close();
    }
}

impl ProcessLink for Lane {
    fn send_line(&mut self, line: Vec<u8>) -> Result<(), SendError> {
        let sent = self.router.send_line(line);
        self.has_sent |= sent.is_ok();
        sent
    }
}
