//! The write buffer: what one turn's worker has said and the log does not hold yet.
//!
//! One write at a time; while it is under way what is said gathers here, within bounds. A full buffer is
//! the run's sign to stop listening, so that a slow database holds back the worker's pipe.

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

/// Events, and bytes of them, that may gather while a write is under way.
const EVENTS_MAX: usize = 1024;
const BYTES_MAX: usize = 256 * 1024;

type Writing = Pin<Box<dyn Future<Output = Written> + Send>>;

/// One turn's writes.
pub(in crate::worker) struct WriteBuffer {
    writer: Writer,
    claim: Claim,
    /// The newest `seq` that is known to be committed.
    pub(in crate::worker) base: i32,
    gathered: Vec<NewEvent>,
    bytes: usize,
    writing: Option<Writing>,
}

impl WriteBuffer {
    /// A buffer that goes on after `base`.
    pub(in crate::worker) fn new(writer: Writer, claim: Claim, base: i32) -> Self {
        WriteBuffer { writer, claim, base, gathered: Vec::new(), bytes: 0, writing: None }
    }

    /// Takes an event to be written with the next write.
    pub(in crate::worker) fn gather(&mut self, event: NewEvent) {
        self.bytes += event.data.len();
        self.gathered.push(event);
    }

    /// Whether no more should be gathered for now.
    pub(in crate::worker) fn is_full(&self) -> bool {
        self.gathered.len() >= EVENTS_MAX || self.bytes >= BYTES_MAX
    }

    /// Begins a write of what was gathered, unless one is under way. `clock` runs after it, for `budget`.
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

    /// What became of the write that is under way; waits for ever where there is none. Cancel-safe.
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

    /// Whether a write is under way.
    pub(in crate::worker) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Gives away what was gathered.
    pub(in crate::worker) fn take_gathered(&mut self) -> Vec<NewEvent> {
        self.bytes = 0;
        std::mem::take(&mut self.gathered)
    }
}
