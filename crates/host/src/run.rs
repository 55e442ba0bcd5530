//! One turn on a ready worker: what the worker says goes to an outlet, until the turn ends.
//!
//! One loop, four things to wait for: the outlet's writes and calls, the worker, a clock. While the outlet is full the
//! worker is not listened to: its pipe fills, and it waits.
//!
//! Keeps I7: the end of a worker is told after everything that the worker said.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;
use metrics::counter;
use tokio::time::{Instant, sleep_until};

use super::{
    link::Link,
    owner::LATE_OUTPUT,
    process::Heard,
    protocol::{codec::Fault, messages::FromWorker},
};
use lastword_words::{failure::Code, id::TurnId};

/// How long a worker may live on after it closed its output.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// Where a turn's words go: to the log, or over HTTP to the replica that holds the turn. Owns the turn's clocks, and what
/// reaches it from outside.
pub trait Outlet<L: Link>: Send {
    /// An order from a client, for the worker.
    type Order: Send;
    /// How the turn ends.
    type End: Send;

    /// The turn.
    fn turn(&self) -> TurnId;

    /// Whether no more should be heard for now.
    fn is_full(&self) -> bool;

    /// Begins to write what was heard, unless a write is under way.
    fn flush(&mut self);

    /// Until a write has ended, or somebody calls. Cancel-safe.
    fn step(&mut self) -> impl Future<Output = Step<Self::Order, Self::End>> + Send;

    /// A write is done.
    fn written(&mut self, link: &mut L);

    /// Carries out an order; the turn's end, where the order leads to one.
    fn obey(&mut self, order: Self::Order, link: &mut L) -> impl Future<Output = Option<Self::End>> + Send;

    /// Takes a message of the worker on this turn; the turn's end, where the message is one.
    fn heed(&mut self, message: FromWorker, link: &mut L) -> Option<Self::End>;

    /// The worker will say nothing more that counts; the turn's end.
    fn broken(&mut self, broken: Broken) -> Self::End;

    /// When the next clock lapses. Asked for before each wait; `is_listening`: whether the worker is heard meanwhile.
    fn due(&mut self, is_listening: bool) -> Option<Instant>;

    /// The clock has lapsed; the turn's end, unless there is more time.
    fn lapsed(&mut self, link: &mut L) -> Option<Self::End>;
}

/// What a turn's outlet comes to while the turn waits.
#[derive(Debug)]
pub enum Step<O, E> {
    /// A write is done.
    Written,
    /// A client wants something of the turn.
    Order(O),
    /// The turn ends.
    End(E),
}

/// Why a worker's words are over before its turn's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// It said what no worker may say.
    Protocol,
    /// It closed its output, and lives.
    Closed,
    /// It is gone, and with it what it had not said.
    Gone,
    /// Its host took the turn, and no program received it.
    Unreceived,
}

impl Breach {
    /// What a remote worker's host reports, as if the host's process were one of this program.
    fn reported(code: Code) -> Breach {
        match code {
            Code::WorkerProtocol => Breach::Protocol,
            Code::WorkerStartupFailed | Code::InputTooLong => Breach::Unreceived,
            _ => Breach::Gone,
        }
    }
}

/// The end of a worker's words, as a failure of its turn.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The kind.
    pub breach: Breach,
    /// What the turn's last word says.
    pub code: Code,
    /// For a person.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

impl Broken {
    /// The worker said what no worker may say.
    pub fn protocol(message: String, detail: Option<String>) -> Broken {
        Broken { breach: Breach::Protocol, code: Code::WorkerProtocol, message, detail }
    }

    /// What was heard, where that ends the worker's words; otherwise a message, or nothing for a closed output.
    fn read(heard: Heard, link: &impl Link) -> Result<Option<FromWorker>, Broken> {
        match heard {
            Heard::Message(from) => Ok(Some(from)),
            Heard::Closed => Ok(None),
            Heard::Protocol(error) => {
                let detail = (!error.excerpt.is_empty()).then(|| format!("line: {}", error.excerpt));
                Err(Broken::protocol(error.to_string(), detail))
            }
            Heard::Exited(exit) => {
                let message = format!("The worker handling your request stopped unexpectedly ({exit}).");
                let (breach, code, detail) = (Breach::Gone, Code::WorkerExited, link.stderr_tail());
                Err(Broken { breach, code, message, detail })
            }
            Heard::Gone(why) => {
                let (breach, code, message) = (Breach::reported(why.code), why.code, why.message);
                Err(Broken { breach, code, message, detail: why.detail })
            }
        }
    }

    /// The worker closed its output, and did not end after that.
    fn closed() -> Broken {
        let message = "The worker handling your request closed its output in the middle of the turn.";
        let (breach, code, detail) = (Breach::Closed, Code::WorkerExited, None);
        Broken { breach, code, message: message.to_owned(), detail }
    }
}

/// Hears a worker until its turn ends.
pub async fn until_end<L: Link, O: Outlet<L>>(link: &mut L, outlet: &mut O) -> O::End {
    let mut closed_until = None;
    loop {
        // What is said in one breath goes into one write, or with the last word.
        while !outlet.is_full()
            && let Some(heard) = link.recv().now_or_never()
        {
            if let Some(end) = hear(heard, link, outlet, &mut closed_until) {
                return end;
            }
        }
        outlet.flush();
        let is_listening = !outlet.is_full();
        let (due, closed) = (outlet.due(is_listening), closed_until.filter(|_| is_listening));
        let at = due.into_iter().chain(closed).min();
        let end = tokio::select! {
            biased;
            step = outlet.step() => match step {
                Step::Written => {
                    outlet.written(link);
                    None
                }
                Step::Order(order) => outlet.obey(order, link).await,
                Step::End(end) => Some(end),
            },
            heard = link.recv(), if is_listening => hear(heard, link, outlet, &mut closed_until),
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => match closed {
                Some(closed) if due.is_none_or(|due| closed < due) => Some(outlet.broken(Broken::closed())),
                _ => outlet.lapsed(link),
            },
        };
        if let Some(end) = end {
            return end;
        }
    }
}

fn hear<L: Link, O: Outlet<L>>(
    heard: Heard,
    link: &mut L,
    outlet: &mut O,
    closed_until: &mut Option<Instant>,
) -> Option<O::End> {
    match Broken::read(heard, link) {
        Ok(Some(message)) => match message.turn_id.filter(|&turn| turn != outlet.turn()) {
            None => outlet.heed(message, link),
            Some(turn) if Some(turn) == link.last_turn() => {
                // Its turn has had its last word: the message cannot become an event any more (I3).
                counter!(LATE_OUTPUT).increment(1);
                tracing::warn!(late_for = %turn, "a worker spoke after its turn's end; not kept");
                None
            }
            Some(_) => Some(outlet.broken(Broken::protocol(Fault::OtherTurn.to_string(), None))),
        },
        Ok(None) => {
            closed_until.get_or_insert_with(|| Instant::now() + CLOSED_GRACE);
            None
        }
        Err(broken) => Some(outlet.broken(broken)),
    }
}
