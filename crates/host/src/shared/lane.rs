//! A turn's lane: its link to a shared worker.
//!
//! A lane delivers the worker's messages for its turn, then how the worker ended (I7).

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

/// A turn's lane to a shared worker. Dropping it frees the lane for another turn.
#[derive(Debug)]
pub struct Lane {
    router: TurnRouter,
    turn: TurnId,
    unheard: mpsc::Receiver<Heard>,
    stage: watch::Receiver<Stage>,
    /// The worker's process id, if the worker was idle when the lane was opened.
    idle_pid: Option<i32>,
    /// Whether `recv` has reported that the output is closed.
    is_closed: bool,
    /// Whether the worker has been sent anything of the turn.
    has_sent: bool,
}

impl Lane {
    pub(super) fn new(line: RawLane) -> Self {
        let RawLane { router, turn, unheard, idle_pid } = line;
        let stage = router.stage();
        Lane { router, turn, unheard, stage, idle_pid, is_closed: false, has_sent: false }
    }

    /// The worker's id.
    pub fn worker(&self) -> WorkerId {
        self.router.worker()
    }

    /// Waits until the worker can take the turn. Returns false if the worker is gone and another may take it.
    /// Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<bool, Obstacle> {
        let is_past_start = |stage: &Stage| !matches!(stage, Stage::Starting);
        let stage = self.stage.wait_for(is_past_start).await.map(|stage| stage.clone());
        match stage {
            Ok(Stage::Ready) if !self.is_alive() => {
                // The process is dead, but its guard has not reported it yet.
                self.router.retire(Standing::Condemned);
                Ok(false)
            }
            Ok(Stage::Ready) => Ok(true),
            Ok(Stage::Refused { message, detail }) => Err(Obstacle::Failed { message, detail }),
            Ok(Stage::Lacking { lack, detail }) => Err(Obstacle::Lacks { lack, detail }),
            Ok(_) | Err(_) => Ok(false),
        }
    }

    /// Whether the process still exists; checked only if the worker was idle.
    pub(super) fn is_alive(&self) -> bool {
        !self.idle_pid.is_some_and(is_dead)
    }

    /// Acts as if the worker had received its turn.
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
        // All messages are read; the stage tells why there are no more.
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
            // Before the close, so that no turn takes the free lane.
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
