//! The engine's end of a remote worker's line.
//!
//! Owns messages that the worker has sent and the run has not read yet. Keeps the message numbers exact: each
//! message is one event of the turn, or its end, so the log tells how many arrived. `ready` and `beat` have no
//! meaning here and become `custom` events.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use crate::{
    failure::Code,
    host::{
        Link,
        process::{ExitReport, Heard, SendError},
        protocol::{
            codec::{LINE_BYTES_MAX, read_with},
            messages::{BadField, FromWorker, Message, Object, ToWorker},
        },
    },
    id::WorkerId,
    rendezvous::{self, Batch, LineEnd, OfferGuard, OrderToTell, Rendezvous, TICK, TurnOffer},
    store::{adoption::Adopted, claim::Claim},
    token,
    worker::turn::Replay,
};

/// A turn's link to a remote worker.
pub(super) struct RemoteLink {
    rendezvous: Arc<Rendezvous>,
    line: Arc<rendezvous::Line>,
    batches: mpsc::Receiver<Batch>,
    unheard: VecDeque<Bytes>,
    tick: Interval,
    /// Set until the turn is offered: the addressee, the turn's token and the rest of the offer.
    unoffered: Option<(OfferGuard, String, Claim)>,
    end: LineEnd,
}

enum LineSaid {
    Message(FromWorker),
    Gone(ExitReport),
}

impl RemoteLink {
    /// A link to a worker that is about to be offered the turn.
    pub(super) fn offering(
        rendezvous: &Arc<Rendezvous>,
        claim: &Claim,
        guard: OfferGuard,
        token: String,
    ) -> Self {
        let worker = guard.session().worker.id;
        let lease = (claim.turn, claim.epoch);
        let (line, batches) = rendezvous::Line::new(lease, worker, token::hash(&token), 0);
        let unoffered = Some((guard, token, claim.clone()));
        RemoteLink::opened(rendezvous, line, batches, unoffered)
    }

    /// A link to a worker that already has the turn and has sent `past.heard` messages.
    pub(super) fn resuming(rendezvous: &Arc<Rendezvous>, adopted: &Adopted, past: &Replay) -> Self {
        let lease = (adopted.claim.turn, adopted.claim.epoch);
        let (line, batches) = rendezvous::Line::new(lease, adopted.worker, adopted.token_hash, past.heard);
        if adopted.is_running {
            line.begin();
        }
        let mut remote = RemoteLink::opened(rendezvous, line, batches, None);
        // The worker may have received these answers already; a worker passes each answer on once.
        for (ask_id, answer) in &past.answers {
            let (turn_id, ask_id, answer) = (adopted.claim.turn, ask_id.clone(), answer.clone());
            // Cannot be too long: the same answer was sent before.
            let _ = remote.send(&ToWorker::Answer { turn_id, ask_id, answer });
        }
        remote
    }

    fn opened(
        rendezvous: &Arc<Rendezvous>,
        line: rendezvous::Line,
        batches: mpsc::Receiver<Batch>,
        unoffered: Option<(OfferGuard, String, Claim)>,
    ) -> Self {
        let mut tick = interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (rendezvous, line) = (rendezvous.clone(), rendezvous.open(line));
        RemoteLink {
            rendezvous,
            line,
            batches,
            unheard: VecDeque::new(),
            tick,
            unoffered,
            end: LineEnd::LetGo,
        }
    }

    pub(super) fn line(&self) -> &Arc<rendezvous::Line> {
        &self.line
    }

    /// Counts one tick of silence. Returns whether the worker counts as lost.
    fn is_lost(&self) -> bool {
        let session = self.rendezvous.session(self.line.worker);
        self.line.liveness.tick(session.is_some_and(|session| session.liveness.is_cut_off()))
    }

    fn offer(&mut self, message: String) -> Result<(), SendError> {
        let Some((guard, token, claim)) = self.unoffered.take() else { return Ok(()) };
        let session = guard.session().clone();
        if session.is_leaving() {
            return Err(SendError::Closed);
        }
        session.offer(TurnOffer {
            turn: claim.turn,
            conversation: claim.conversation,
            epoch: claim.epoch,
            ordinal: claim.assignment.ordinal,
            token,
            message,
            guard,
        });
        Ok(())
    }
}

impl Link for RemoteLink {
    fn worker(&self) -> WorkerId {
        self.line.worker
    }

    async fn recv(&mut self) -> Heard {
        loop {
            if let Some(line) = self.unheard.pop_front() {
                return heard(&line);
            }
            tokio::select! {
                biased;
                Some(batch) = self.batches.recv() => self.unheard.extend(batch),
                why = self.line.exit_report() => return Heard::Gone(why),
                _ = self.tick.tick() => if self.is_lost() {
                    let (code, detail) = (Code::WorkerLost, None);
                    return Heard::Gone(ExitReport { code, message: code.message().to_owned(), detail });
                }
            }
        }
    }

    /// Queues a message for the worker's next call. Never blocks.
    fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        let mut line = message.to_line().map_err(|_| SendError::Unwritable)?;
        line.pop();
        // The worker's host writes the message as one line of the native protocol, which bounds its length.
        if line.len() > LINE_BYTES_MAX {
            return Err(SendError::TooLong);
        }
        let text = String::from_utf8(line).map_err(|_| SendError::Unwritable)?;
        let key = match message {
            ToWorker::Turn { .. } => return self.offer(text),
            ToWorker::Cancel { .. } => "cancel".to_owned(),
            ToWorker::Answer { ask_id, .. } => format!("answer:{ask_id}"),
            ToWorker::Shutdown => return Ok(()),
        };
        self.line.add_order(OrderToTell { key, message: text });
        self.rendezvous.ring(&self.line);
        Ok(())
    }

    fn waited(&self) -> Duration {
        self.line.waited()
    }

    fn may_have_waited(&self) -> Duration {
        self.line.may_have_waited()
    }

    fn acknowledge(&self, messages: u64) {
        self.line.acknowledge(messages);
    }

    fn note_end(&mut self, messages: Option<u64>) {
        messages.into_iter().for_each(|messages| self.line.acknowledge(messages));
        self.end = LineEnd::Ended;
    }
}

impl Drop for RemoteLink {
    fn drop(&mut self) {
        if let Some(session) = self.rendezvous.session(self.line.worker) {
            session.withdraw(self.line.turn, self.line.epoch);
        }
        self.rendezvous.close(&self.line, self.end);
    }
}

fn heard(line: &[u8]) -> Heard {
    match read_with(line, said) {
        Ok(LineSaid::Message(from)) => Heard::Message(from.cut_as(line)),
        Ok(LineSaid::Gone(why)) => Heard::Gone(why),
        Err(error) => Heard::Protocol(error),
    }
}

fn said(object: &Object<'_>) -> Result<LineSaid, BadField> {
    let text = |field: &'static str| object.text_if_any(field).ok().flatten();
    match text("type").as_deref() {
        Some("gone") => {
            let wanted = "one of the reasons of this message";
            let code = text("code").as_deref().and_then(reason).ok_or(BadField { field: "code", wanted })?;
            let message = text("message").unwrap_or_else(|| code.message().to_owned());
            let detail = text("detail");
            Ok(LineSaid::Gone(ExitReport { code, message, detail }))
        }
        Some(name @ ("ready" | "beat")) => {
            let name = name.to_owned();
            let message = Message::Custom { name, data: object.whole() };
            Ok(LineSaid::Message(FromWorker { turn_id: None, message }))
        }
        _ => FromWorker::from_object(object).map(LineSaid::Message),
    }
}

/// The codes with which a host may report its worker's end.
fn reason(code: &str) -> Option<Code> {
    code.parse().ok().filter(|code| {
        matches!(
            code,
            Code::WorkerExited
                | Code::WorkerStartupFailed
                | Code::WorkerProtocol
                | Code::WorkerUnresponsive
                | Code::Interrupted
                | Code::InputTooLong
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_event_or_an_end() {
        let Heard::Message(from) = heard(br#"{"type":"beat","x":1}"#) else { panic!("not heard") };
        assert!(matches!(from.message, Message::Custom { name, .. } if name == "beat"));
        let Heard::Gone(why) = heard(br#"{"type":"gone","code":"worker_exited","message":"m"}"#) else {
            panic!("not heard")
        };
        assert_eq!((why.code, why.message.as_str(), why.detail), (Code::WorkerExited, "m", None));
        for line in [&br#"{"type":"gone","code":"internal"}"#[..], b"x", b"[]", br#"{"type":"delta"}"#] {
            assert!(matches!(heard(line), Heard::Protocol(_)), "{}", String::from_utf8_lossy(line));
        }
        let forged =
            heard(br#"{"type":"custom","name":"gone","data":{"type":"gone","code":"worker_exited"}}"#);
        assert!(matches!(forged, Heard::Message(_)), "a worker does not speak for its host");
    }
}
