//! State shared by the parts of this host.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    link::GatewayLink,
    outbox::{Outbox, Posted},
    owner::Programs,
    turn::HostedJob,
    turns::Turns,
    words::{OfferedTurn, RegisteredHost},
};
use crate::{
    HostOwner as _, WorkerHost,
    task::{Supervisor, TaskKind},
};

/// State shared by the parts of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HostState {
    pub link: Arc<GatewayLink>,
    pub turns: Arc<Turns>,
    pub workers: WorkerHost<Programs>,
    pub concurrency: usize,
    pub idle_max: Option<Duration>,
    /// When this host takes no new turns because of its age, and leaves once the running turns have ended.
    pub retire_at: Option<Instant>,
    /// Cancelled when running turns are interrupted.
    pub now: CancellationToken,
    /// Cancelled when this host says goodbye.
    pub left: CancellationToken,
}

impl HostState {
    /// Takes an offered turn, once.
    pub fn accept(&self, offer: OfferedTurn, registered: &Arc<RegisteredHost>) {
        let (turn, epoch) = (offer.turn_id, offer.epoch);
        let Some(admitted) = self.turns.admit(turn, epoch) else { return };
        tracing::info!(turn_id = %turn, epoch, conversation_id = %offer.conversation_id, "a turn was offered");
        let outbox =
            Outbox::new(self.link.clone(), (turn, epoch), offer.token.clone(), admitted.over.clone());
        let mut job = HostedJob::new(offer, admitted, outbox, registered.clone(), self.now.clone());
        let (workers, span) = (self.workers.clone(), job.span.clone());
        let serving = async move {
            if job.outbox.take().await == Posted::Done {
                workers.serve(job).await;
            }
        };
        self.supervisor().spawn(TaskKind::Turn, "turn", serving.instrument(span));
    }

    /// Stops taking turns.
    pub fn leave(&self) {
        self.supervisor().soft().cancel();
        self.workers.retire_all();
    }

    pub fn is_leaving(&self) -> bool {
        self.supervisor().soft().is_cancelled()
    }

    pub async fn leaving(&self) {
        self.supervisor().soft().cancelled().await;
    }

    pub fn has_left(&self) -> bool {
        self.left.is_cancelled()
    }

    /// When this host asks for turns no more: it retires then, or has been idle for long enough.
    pub fn asks_until(&self) -> Option<Instant> {
        self.idle_until().into_iter().chain(self.retire_at).min()
    }

    pub fn is_idle_for_too_long(&self) -> bool {
        self.idle_until().is_some_and(|until| until <= Instant::now())
    }

    /// Whether this host takes no new turns because of its age.
    pub fn is_retired(&self) -> bool {
        self.retire_at.is_some_and(|at| at <= Instant::now())
    }

    /// When this host leaves unless a turn arrives; `None` if it has turns or no such limit.
    fn idle_until(&self) -> Option<Instant> {
        Some(self.turns.idle_since()? + self.idle_max?)
    }

    fn supervisor(&self) -> &Supervisor {
        self.workers.owner().supervisor()
    }
}
