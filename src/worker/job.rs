//! A turn to be run here, and the ways to reach it from outside: orders, and the two halts.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{clocks::Clocks, runs::Place};
use crate::store::{claim::Claim, commands::Command, turns::Agent};

/// Why a turn must end here although its worker is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// It is not ours any more: nothing may be written (I5).
    Lost,
    /// A deploy's drain is over.
    Interrupted,
    /// Its remote worker calls another replica, which holds it now.
    Moved,
}

/// One turn to be run here. Its drop frees its place.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) claim: Claim,
    pub(super) agent: Agent,
    pub(super) clocks: Clocks,
    pub(super) span: tracing::Span,
    pub(super) reach: Reach,
}

/// How others reach one turn that runs here, and its place.
#[derive(Debug)]
pub(super) struct Reach {
    orders: mpsc::Receiver<Command>,
    halt: watch::Receiver<Option<Halt>>,
    due: Arc<Mutex<Instant>>,
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "held for its drop"))]
    place: Place,
}

/// What reaches a turn from outside.
#[derive(Debug)]
pub(super) enum Call {
    /// A client wants something of it.
    Order(Command),
    /// It must end here.
    Halt(Halt),
}

impl Reach {
    /// The turn's ends of what others hold; `due` is read by the host.
    pub(super) fn new(
        orders: mpsc::Receiver<Command>,
        halt: watch::Receiver<Option<Halt>>,
        due: Arc<Mutex<Instant>>,
        place: Place,
    ) -> Self {
        Reach { orders, halt, due, place }
    }

    /// Gives up the turn's place: it only waits, for something that takes none here.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "nothing waits like that"))]
    pub(super) fn free_place(&mut self) {
        self.place.free();
    }

    /// Tells the host when the turn's next clock lapses.
    pub(super) fn set_due(&self, at: Instant) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Until somebody calls. Cancel-safe.
    pub(super) async fn call(&mut self) -> Call {
        let Reach { orders, halt, .. } = self;
        tokio::select! {
            biased;
            halt = halt.wait_for(Option::is_some) => Call::Halt(halt.map_or(Halt::Lost, |halt| halt.unwrap_or(Halt::Lost))),
            Some(command) = orders.recv() => Call::Order(command),
        }
    }

    /// Until this turn must end here; leaves orders waiting. Cancel-safe.
    pub(super) async fn halted(&mut self) -> Halt {
        self.halt.wait_for(Option::is_some).await.map_or(Halt::Lost, |halt| halt.unwrap_or(Halt::Lost))
    }
}
