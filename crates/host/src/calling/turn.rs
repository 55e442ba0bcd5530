//! One turn on a process of this host: messages go to the outbox, orders to the process.
//!
//! Keeps I7: the end of a process is reported after all its messages. Keeps I11: a turn that is over for the
//! gateway is ended here.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    outbox::{Outbox, Posted},
    turns::Admitted,
    words::{OfferedTurn, RegisteredHost},
};
use crate::{
    Broken, Fate, Halt, HostedTurn, Obstacle, Outlet, ProcessLink, Step,
    process::{SendError, UNREAD},
    protocol::{
        encode::{self, gone},
        messages::FromWorker,
    },
    until_end,
};
use lastword_words::{
    agent::Scope,
    failure::Code,
    id::{ConversationId, TurnId},
    word::Open,
};

/// A turn to be run here.
#[derive(Debug)]
pub struct HostedJob {
    pub offer: OfferedTurn,
    pub admitted: Admitted,
    pub outbox: Outbox,
    pub registered: Arc<RegisteredHost>,
    pub span: tracing::Span,
    /// Cancelled when this host stops at once.
    interrupted: CancellationToken,
    /// When its worker must be ready.
    ready_until: Instant,
}

/// How a turn ends here.
pub enum TurnEnd {
    /// With this line to the gateway, and this fate of the process.
    Line(Vec<u8>, Fate),
    /// The turn no longer belongs to this host.
    Over,
}

impl HostedJob {
    /// A turn whose startup clock starts now.
    pub fn new(
        offer: OfferedTurn,
        admitted: Admitted,
        outbox: Outbox,
        registered: Arc<RegisteredHost>,
        interrupted: CancellationToken,
    ) -> HostedJob {
        let ready_until = Instant::now() + Duration::from_millis(registered.startup_ms);
        let span = tracing::info_span!(
            "turn", turn_id = %offer.turn_id, conversation_id = %offer.conversation_id,
            epoch = offer.epoch, worker_id = tracing::field::Empty,
        );
        HostedJob { offer, admitted, outbox, registered, span, interrupted, ready_until }
    }

    /// Runs a turn that was taken.
    pub async fn run(&mut self, link: &mut impl ProcessLink) -> Fate {
        let end = match self.deliver(link) {
            Ok(()) => {
                // The span names the process: operators see the host alone.
                tracing::debug!("the worker has the turn");
                until_end(link, self).await
            }
            Err(why) => {
                let (code, message) = why.of_a_turn();
                TurnEnd::Line(gone(code, message, Some(&why.to_string())), Fate::End)
            }
        };
        let fate = match end {
            TurnEnd::Line(line, fate) => {
                link.hang_up(fate == Fate::Keep);
                self.outbox.push(line);
                // Even if the gateway wrote another last word, the process has ended the turn and may be kept.
                self.post_all().await;
                fate
            }
            TurnEnd::Over => {
                link.hang_up(false);
                Fate::End
            }
        };
        if fate == Fate::End {
            link.kill();
        }
        fate
    }

    /// Sends the turn, without history if this process served the conversation's previous turn.
    fn deliver(&self, link: &mut impl ProcessLink) -> Result<(), SendError> {
        match self.offer.line(link.last_turn().is_some()) {
            Ok(line) => link.send_line(line),
            Err(why) => {
                tracing::error!(%why, "an offered turn cannot be encoded for the worker; the turn fails");
                Err(SendError::Unwritable)
            }
        }
    }

    /// Reports a turn whose process did not start. `tail`: the end of the process's log.
    pub async fn not_started(&mut self, why: Obstacle, tail: Option<String>) {
        let line = match why {
            Obstacle::Halted(Halt::Lost | Halt::Moved) => return,
            Obstacle::Halted(Halt::Interrupted) => gone(Code::Interrupted, Code::Interrupted.message(), None),
            // No worker has begun, so the cancel is complete.
            Obstacle::Cancelled(_) => b"{\"type\":\"cancelled\"}\n".to_vec(),
            Obstacle::Failed { message, detail } => failed(&message, detail.or(tail)),
            Obstacle::Lacks { detail, .. } => failed(Code::WorkerStartupFailed.message(), Some(detail)),
            Obstacle::Lapsed => failed(Code::WorkerStartupFailed.message(), tail),
        };
        self.outbox.push(line);
        self.post_all().await;
    }

    /// Posts the remaining messages, unless the turn is over.
    async fn post_all(&mut self) {
        while !self.outbox.is_empty() {
            if self.outbox.posted().await == Posted::Over {
                return;
            }
        }
    }
}

fn failed(message: &str, detail: Option<String>) -> Vec<u8> {
    tracing::warn!(message, detail, "the worker did not start");
    gone(Code::WorkerStartupFailed, message, detail.as_deref())
}

impl HostedTurn for HostedJob {
    /// The ordinal of the turn that a process served last.
    type Fit = i64;

    fn id(&self) -> TurnId {
        self.offer.turn_id
    }

    fn conversation(&self) -> ConversationId {
        self.offer.conversation_id
    }

    fn agent(&self) -> (&str, i32) {
        // A host runs one program, whatever the revision.
        (&self.registered.agent, 0)
    }

    fn is_shared(&self) -> bool {
        self.registered.scope == Scope::Shared
    }

    fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    fn idle_ttl(&self) -> Duration {
        Duration::from_millis(self.registered.idle_ttl_ms)
    }

    fn fit(&self) -> i64 {
        self.offer.ordinal
    }

    /// A warm process serves only the turn after its last one: if another process served a turn in between, this
    /// one lacks that part of the conversation.
    fn fits(&self, served: &i64) -> bool {
        self.offer.ordinal == served + 1
    }

    fn must_start_here(&self) -> bool {
        // A shortage on this host fails no turn at once: the startup clock decides.
        true
    }

    async fn called_off(&mut self) -> Obstacle {
        tokio::select! {
            () = self.admitted.over.cancelled() => Obstacle::Halted(Halt::Lost),
            () = self.interrupted.cancelled() => Obstacle::Halted(Halt::Interrupted),
            // No question was asked yet, so the order can only be a cancel.
            Some(_) = self.admitted.orders.recv() => Obstacle::Cancelled(Open::default()),
            () = sleep_until(self.ready_until) => Obstacle::Lapsed,
        }
    }
}

impl<L: ProcessLink> Outlet<L> for HostedJob {
    /// A line for the worker.
    type Order = Vec<u8>;
    type End = TurnEnd;

    fn turn(&self) -> TurnId {
        self.offer.turn_id
    }

    fn is_full(&self) -> bool {
        self.outbox.is_full()
    }

    /// The outbox posts by itself.
    fn flush(&mut self) {}

    async fn step(&mut self) -> Step<Vec<u8>, TurnEnd> {
        tokio::select! {
            biased;
            () = self.admitted.over.cancelled() => Step::End(TurnEnd::Over),
            () = self.interrupted.cancelled() => {
                let line = gone(Code::Interrupted, Code::Interrupted.message(), None);
                Step::End(TurnEnd::Line(line, Fate::End))
            }
            Some(order) = self.admitted.orders.recv() => Step::Order(order),
            posted = self.outbox.posted() => match posted {
                Posted::Done => Step::Written,
                Posted::Over => Step::End(TurnEnd::Over),
            },
        }
    }

    fn written(&mut self, _link: &mut L) {}

    async fn obey(&mut self, order: Vec<u8>, link: &mut L) -> Option<TurnEnd> {
        match link.send_line(order) {
            // A process that has exited is reported by the next `recv()`.
            Ok(()) | Err(SendError::Closed) => None,
            Err(why) => {
                let line = gone(Code::WorkerUnresponsive, UNREAD, Some(&why.to_string()));
                Some(TurnEnd::Line(line, Fate::End))
            }
        }
    }

    fn heed(&mut self, from: FromWorker, _link: &mut L) -> Option<TurnEnd> {
        let line = encode::relay(&from.message)?;
        if encode::is_end(&from.message) {
            return Some(TurnEnd::Line(line, Fate::Keep));
        }
        self.outbox.push(line);
        None
    }

    fn broken(&mut self, broken: Broken) -> TurnEnd {
        let Broken { code, message, detail, .. } = broken;
        TurnEnd::Line(gone(code, &message, detail.as_deref()), Fate::End)
    }

    /// The gateway keeps the turn's clocks.
    fn due(&mut self, _is_listening: bool) -> Option<Instant> {
        None
    }

    fn lapsed(&mut self, _link: &mut L) -> Option<TurnEnd> {
        None
    }
}
