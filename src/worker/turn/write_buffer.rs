//! The write buffer: events of one turn that the log does not hold yet.
//!
//! One write at a time; events gather here meanwhile, within bounds. While the buffer is full the run reads no
//! more messages, so a slow database fills the worker's pipe and holds the worker back.

use std::{future::Future, pin::Pin, time::Duration};

use crate::{
    event::NewEvent,
    store::{
        claim::Claim,
        events::{Append, TurnClock},
        group_commit::{Writer, Written},
    },
    units::Span,
};

/// Events, and their bytes, that may gather while a write is in flight.
const EVENTS_MAX: usize = 1024;
const BYTES_MAX: usize = 256 * 1024;

type Writing = Pin<Box<dyn Future<Output = Written> + Send>>;

pub(in crate::worker) struct WriteBuffer {
    writer: Writer,
    claim: Claim,
    /// The newest `seq` known to be committed.
    pub(in crate::worker) base: i32,
    gathered: Vec<NewEvent>,
    bytes: usize,
    writing: Option<Writing>,
}

impl WriteBuffer {
    /// A buffer that appends after `base`.
    pub(in crate::worker) fn new(writer: Writer, claim: Claim, base: i32) -> Self {
        WriteBuffer { writer, claim, base, gathered: Vec::new(), bytes: 0, writing: None }
    }

    /// Adds an event to the next write.
    pub(in crate::worker) fn gather(&mut self, event: NewEvent) {
        self.bytes += event.data.len();
        self.gathered.push(event);
    }

    /// Whether the run should stop reading messages for now.
    pub(in crate::worker) fn is_full(&self) -> bool {
        self.gathered.len() >= EVENTS_MAX || self.bytes >= BYTES_MAX
    }

    /// Starts a write of the gathered events, unless a write is in flight. After the commit `clock` runs for
    /// `budget`.
    pub(in crate::worker) fn write(&mut self, clock: TurnClock, budget: Duration) {
        if self.writing.is_some() || self.gathered.is_empty() {
            return;
        }
        let events = self.take_gathered();
        let append = Append {
            turn: self.claim.turn,
            epoch: self.claim.epoch,
            base: self.base,
            events,
            clock,
            budget_ms: Span(budget).millis(),
        };
        let writer = self.writer.clone();
        self.writing = Some(Box::pin(async move { writer.append(append).await }));
    }

    /// Waits for the write in flight; never returns if there is none. Cancel-safe.
    pub(in crate::worker) async fn written(&mut self) -> Written {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let written = writing.await;
        self.writing = None;
        if let Written::Done(seq) = written {
            self.base = seq;
        }
        written
    }

    pub(in crate::worker) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Removes and returns the gathered events.
    pub(in crate::worker) fn take_gathered(&mut self) -> Vec<NewEvent> {
        self.bytes = 0;
        std::mem::take(&mut self.gathered)
    }
}
