//! The loop of one turn on a ready worker: passes the worker's messages to an outlet until the turn ends.
//!
//! Waits for four things: the outlet's writes, the outlet's calls, the worker, a clock. While the outlet is full
//! the worker is not read, so its pipe fills and the worker blocks.
//!
//! Keeps I7: a worker's end is passed on after everything the worker said.

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

/// How long a worker may keep running after it closed its output.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// Takes the output of a turn: to the log, or over HTTP to the replica that holds the turn. Owns the turn's
/// clocks, and commands for the turn.
pub trait Outlet<L: Link>: Send {
    /// A client's command for the worker.
    type Order: Send;
    /// How the turn ends.
    type End: Send;

    /// The turn.
    fn turn(&self) -> TurnId;

    /// Whether the worker must not be read for now.
    fn is_full(&self) -> bool;

    /// Starts to write what was gathered, unless a write is in flight.
    fn flush(&mut self);

    /// Waits for the end of a write, or a call. Cancel-safe.
    fn step(&mut self) -> impl Future<Output = Step<Self::Order, Self::End>> + Send;

    /// Called after each completed write.
    fn written(&mut self, link: &mut L);

    /// Carries out a command. Returns the turn's end if the command causes it.
    fn obey(&mut self, order: Self::Order, link: &mut L) -> impl Future<Output = Option<Self::End>> + Send;

    /// Takes a worker's message for this turn. Returns the turn's end if the message is one.
    fn heed(&mut self, message: FromWorker, link: &mut L) -> Option<Self::End>;

    /// Called when no further message of the worker counts. Returns the turn's end.
    fn broken(&mut self, broken: Broken) -> Self::End;

    /// The next deadline, asked for before each wait. `is_listening`: whether the worker is read during the wait.
    fn due(&mut self, is_listening: bool) -> Option<Instant>;

    /// Called at the deadline. Returns the turn's end, unless the turn has more time.
    fn lapsed(&mut self, link: &mut L) -> Option<Self::End>;
}

/// What [`Outlet::step`] returns.
#[derive(Debug)]
pub enum Step<O, E> {
    /// A write has completed.
    Written,
    /// A client's command.
    Order(O),
    /// The turn's end.
    End(E),
}

/// Why a worker's messages end before its turn does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// The worker broke the protocol.
    Protocol,
    /// The worker closed its output but still runs.
    Closed,
    /// The worker has ended; messages it had not sent are lost.
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

/// The end of a worker's messages, as a failure of its turn.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The kind of breach.
    pub breach: Breach,
    /// The code of the turn's last word.
    pub code: Code,
    /// For clients.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

impl Broken {
    /// A breach of the protocol.
    pub fn protocol(message: String, detail: Option<String>) -> Broken {
        Broken { breach: Breach::Protocol, code: Code::WorkerProtocol, message, detail }
    }

    /// A message, `None` if the worker closed its output, or the end of the worker's messages as an error.
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

    /// The worker closed its output and kept running.
    fn closed() -> Broken {
        let message = "The worker handling your request closed its output in the middle of the turn.";
        let (breach, code, detail) = (Breach::Closed, Code::WorkerExited, None);
        Broken { breach, code, message: message.to_owned(), detail }
    }
}

/// Runs the loop until the turn ends.
pub async fn until_end<L: Link, O: Outlet<L>>(link: &mut L, outlet: &mut O) -> O::End {
    let mut closed_until = None;
    loop {
        // Reads all messages that are ready, so that they share one write or go with the last word.
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
                // The turn of this message has its last word, so the message cannot become an event (I3).
                counter!(LATE_OUTPUT).increment(1);
                tracing::warn!(
                    late_for = %turn,
                    "a worker's message came after its turn's end; the message is dropped"
                );
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
