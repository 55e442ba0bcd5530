//! One turn on a process of this host: what is heard goes to the outbox, what is ordered to the process.
//!
//! Keeps I7: the end of a process is told after everything that it said. Keeps I11: a turn that is over for
//! the gateway is ended here.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    outbox::{Outbox, Posted},
    turns::Place,
    words::{Offer, Registered},
};
use crate::{
    failure::Code,
    id::TurnId,
    worker::{
        codec::Fault,
        process::{Heard, Inlet, Process, SendError},
        relay::{self, gone},
        wire::FromWorker,
    },
};

/// How long a process may live on after it closed its output.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// A turn to be run here.
pub struct Job {
    pub offer: Offer,
    pub place: Place,
    pub outbox: Outbox,
    pub registered: Arc<Registered>,
    /// This host stops now.
    pub interrupted: CancellationToken,
}

/// The turn's way to its process.
pub enum Hand<'a> {
    /// It serves this turn alone.
    Own(&'a mut Process),
    /// It serves others too.
    Shared(Inlet, mpsc::Receiver<Heard>),
}

/// What becomes of a process after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Keep,
    End,
}

/// Why a turn is not begun, or not gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalledOff {
    /// Somebody cancelled it.
    Cancelled,
    /// It is not this host's any more.
    Over,
    /// This host stops now.
    Interrupted,
}

impl Job {
    /// Until the turn need not be begun with. Cancel-safe.
    pub async fn called_off(&mut self) -> CalledOff {
        tokio::select! {
            () = self.place.over.cancelled() => CalledOff::Over,
            () = self.interrupted.cancelled() => CalledOff::Interrupted,
            // It has asked nothing yet: it can only be a cancel.
            Some(_) = self.place.orders.recv() => CalledOff::Cancelled,
        }
    }
}

impl Hand<'_> {
    async fn recv(&mut self) -> Heard {
        match self {
            Hand::Own(process) => process.recv().await,
            // The last thing on it is how the process ended.
            Hand::Shared(_, line) => line.recv().await.unwrap_or(Heard::Closed),
        }
    }

    fn send(&self, line: Vec<u8>) -> Result<(), SendError> {
        match self {
            Hand::Own(process) => process.inlet().send_line(line),
            Hand::Shared(inlet, _) => inlet.send_line(line),
        }
    }

    /// For operators. A shared process may have spoken of other conversations.
    fn stderr_tail(&self) -> Option<String> {
        match self {
            Hand::Own(process) => Some(process.stderr_tail()),
            Hand::Shared(..) => None,
        }
    }
}

/// A turn whose process did not come to serve it.
pub async fn not_started(job: &mut Job, message: &str, detail: Option<&str>) {
    tracing::warn!(turn_id = %job.offer.turn_id, message, detail, "the worker did not start");
    job.outbox.push(gone(Code::WorkerStartupFailed, message, detail));
    flush(job).await;
}

/// A turn that was not begun with.
pub async fn call_off(job: &mut Job, why: CalledOff) {
    match why {
        CalledOff::Over => return,
        CalledOff::Cancelled => job.outbox.push(b"{\"type\":\"cancelled\"}\n".to_vec()),
        CalledOff::Interrupted => {
            job.outbox.push(gone(Code::Interrupted, Code::Interrupted.message(), None));
        }
    }
    flush(job).await;
}

/// Posts what is left; whether it was taken.
async fn flush(job: &mut Job) -> bool {
    while !job.outbox.is_empty() {
        if job.outbox.posted().await == Posted::Over {
            return false;
        }
    }
    true
}

/// Runs a turn that was taken. `has_history`: the process served the turn before.
pub async fn run(hand: &mut Hand<'_>, mut job: Job, has_history: bool) -> Fate {
    let sent = match job.offer.line(has_history) {
        Ok(line) => hand.send(line),
        Err(why) => {
            tracing::error!(%why, "a turn could not be read");
            Err(SendError::Unwritable)
        }
    };
    if let Err(why) = sent {
        let (code, message) = match why {
            SendError::TooLong => (Code::InputTooLong, Code::InputTooLong.message()),
            _ => (Code::WorkerExited, "The worker handling your request could not be reached."),
        };
        job.outbox.push(gone(code, message, Some(&why.to_string())));
        flush(&mut job).await;
        return Fate::End;
    }
    let mut run = Run { hand, turn: job.offer.turn_id, closed_until: None };
    loop {
        let listens = !job.outbox.is_full();
        let closed_until = run.closed_until;
        let ended = tokio::select! {
            biased;
            () = job.place.over.cancelled() => return Fate::End,
            () = job.interrupted.cancelled() => Some((interrupted(), Fate::End)),
            Some(order) = job.place.orders.recv() => run.pass_on(order),
            posted = job.outbox.posted() => match posted {
                Posted::Done => None,
                Posted::Over => return Fate::End,
            },
            heard = run.hand.recv(), if listens => run.heed(heard, &mut job.outbox),
            () = sleep_until(closed_until.unwrap_or_else(Instant::now)), if closed_until.is_some() => {
                let message = "The worker handling your request closed its output in the middle of the turn.";
                Some((gone(Code::WorkerExited, message, None), Fate::End))
            }
        };
        if let Some((line, fate)) = ended {
            job.outbox.push(line);
            // Where the gateway had another last word, the process has ended the turn all the same.
            flush(&mut job).await;
            return fate;
        }
    }
}

fn interrupted() -> Vec<u8> {
    gone(Code::Interrupted, Code::Interrupted.message(), None)
}

struct Run<'a, 'b> {
    hand: &'a mut Hand<'b>,
    turn: TurnId,
    closed_until: Option<Instant>,
}

/// The turn's last line, and what becomes of the process.
type End = (Vec<u8>, Fate);

impl Run<'_, '_> {
    fn heed(&mut self, heard: Heard, outbox: &mut Outbox) -> Option<End> {
        match heard {
            Heard::Message(from) => self.say(from, outbox),
            Heard::Protocol(error) => {
                Some((gone(Code::WorkerProtocol, &error.to_string(), Some(&error.excerpt)), Fate::End))
            }
            Heard::Closed | Heard::Gone(_) => {
                self.closed_until.get_or_insert_with(|| Instant::now() + CLOSED_GRACE);
                None
            }
            Heard::Exited(exit) => {
                let message = format!("The worker handling your request stopped unexpectedly ({exit}).");
                let tail = self.hand.stderr_tail();
                Some((gone(Code::WorkerExited, &message, tail.as_deref()), Fate::End))
            }
        }
    }

    fn say(&mut self, from: FromWorker, outbox: &mut Outbox) -> Option<End> {
        if from.turn_id.is_some_and(|turn| turn != self.turn) {
            return Some((gone(Code::WorkerProtocol, &Fault::OtherTurn.to_string(), None), Fate::End));
        }
        let line = relay::relay(&from.message)?;
        if relay::is_end(&from.message) {
            return Some((line, Fate::Keep));
        }
        outbox.push(line);
        None
    }

    fn pass_on(&mut self, order: Vec<u8>) -> Option<End> {
        match self.hand.send(order) {
            // One that is gone is about to be heard as such.
            Ok(()) | Err(SendError::Closed) => None,
            Err(why) => {
                let message = "The worker handling your request does not read its input.";
                Some((gone(Code::WorkerUnresponsive, message, Some(&why.to_string())), Fate::End))
            }
        }
    }
}
