//! Finds a turn's worker: its conversation's own, a shared one with room, or a new one.

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    conversation,
    owner::{HostOwner, HostedTurn},
    shared::{self, Lane},
    workers::{OwnWorker, WorkerHost},
};
use crate::task::TaskKind;

impl<O: HostOwner> WorkerHost<O> {
    /// Finds a worker for the turn and runs the turn there. Returns when the turn has ended, or its own worker has
    /// taken it.
    pub async fn serve(&self, turn: O::Turn) {
        if turn.is_shared() { shared::serve(self, turn).await } else { self.place(turn) }
    }

    /// Runs a turn on the ready shared worker of `lane`.
    pub async fn serve_on(&self, lane: Lane, turn: O::Turn) {
        shared::serve_on(self, lane, turn).await;
    }

    /// Passes a turn to its conversation's worker, or starts a new worker. A turn whose bound worker has ended is
    /// forsaken.
    pub fn place(&self, turn: O::Turn) {
        let mut owned = self.owned();
        let conversation = turn.conversation();
        let mut turn = turn;
        if let Some(own) = owned.get_mut(&conversation) {
            let is_match = turn.fits(&own.fit)
                && turn.bound_to().is_none_or(|worker| worker == own.worker)
                && own.is_wanted();
            if is_match {
                let fit = turn.fit();
                match own.turns.try_send(turn) {
                    Ok(()) => {
                        (own.fit, own.is_idle) = (fit, false);
                        // Makes the guard check this replica's life more often, as for every busy worker.
                        own.renewer.as_ref().inspect(|renewer| renewer.renew(true));
                        return;
                    }
                    Err(TrySendError::Full(back) | TrySendError::Closed(back)) => turn = back,
                }
            }
            own.stop.cancel();
        }
        let supervisor = self.owner().supervisor();
        if turn.bound_to().is_some() {
            drop(owned);
            let host = self.clone();
            return supervisor.spawn(
                TaskKind::Turn,
                "turn",
                async move { host.owner().forsaken(turn).await },
            );
        }
        let worker = self.owner().mint();
        let (turns, inbox) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let (fit, idle_since) = (turn.fit(), Instant::now());
        let own =
            OwnWorker { worker, fit, is_idle: false, turns, stop: stop.clone(), renewer: None, idle_since };
        owned.insert(conversation, own);
        drop(owned);
        let host = self.clone();
        supervisor.spawn(TaskKind::Worker, format!("worker {worker}"), async move {
            conversation::live(host, worker, turn, inbox, stop).await;
        });
    }
}
