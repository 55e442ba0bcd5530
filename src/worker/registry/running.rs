//! The turns under way on this replica, and the ways to reach each.
//!
//! Owns the list of them, and what became of the claims that have left it ([`super::past_claims`]), under one lock:
//! at any moment a claim that was admitted is in the one or the other. Refuses a claim that was released.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    past_claims::{ClaimFate, PastClaims},
    turn_slots::TurnSlot,
};
use crate::{
    host::Halt,
    id::{TurnId, WorkerId},
    store::{claim::Claim, commands::Command},
    telemetry::metrics,
};

/// Orders that may wait for one turn.
const ORDERS_MAX: usize = 16;

/// The turns under way.
#[derive(Debug, Default)]
pub(in crate::worker) struct Running(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    turns: HashMap<TurnId, RunningTurn>,
    past: PastClaims,
    /// How many were ever admitted.
    count: u64,
}

/// A turn under way, as others reach it.
#[derive(Debug)]
struct RunningTurn {
    /// Which one: a remote turn may come again with the same epoch.
    number: u64,
    epoch: i32,
    worker: Option<WorkerId>,
    orders: mpsc::Sender<Command>,
    halt: watch::Sender<Option<Halt>>,
    /// When its next clock lapses, as its run last set it.
    due: Arc<Mutex<Instant>>,
}

/// How others reach one turn that runs here. Its drop takes the turn off the list, and then frees its slot.
#[derive(Debug)]
pub(in crate::worker) struct Reach {
    orders: mpsc::Receiver<Command>,
    halt: watch::Receiver<Option<Halt>>,
    due: Arc<Mutex<Instant>>,
    running: Arc<Running>,
    turn: TurnId,
    epoch: i32,
    number: u64,
    slot: Option<TurnSlot>,
}

/// What reaches a turn from outside.
#[derive(Debug)]
pub(in crate::worker) enum Interruption {
    /// A client wants something of it.
    Order(Command),
    /// It must end here.
    Halt(Halt),
}

impl Reach {
    /// Gives up the turn's slot: the turn only waits, for something that takes no slot here.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "nothing waits like that"))]
    pub(in crate::worker) fn free_slot(&mut self) {
        self.slot = None;
    }

    /// Tells others when the turn's next clock lapses.
    pub(in crate::worker) fn set_due(&self, at: Instant) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Until somebody calls. Cancel-safe.
    pub(in crate::worker) async fn call(&mut self) -> Interruption {
        let Reach { orders, halt, .. } = self;
        tokio::select! {
            biased;
            halt = halt.wait_for(Option::is_some) => Interruption::Halt(halt.map_or(Halt::Lost, |halt| halt.unwrap_or(Halt::Lost))),
            Some(command) = orders.recv() => Interruption::Order(command),
        }
    }

    /// Until this turn must end here; leaves orders waiting. Cancel-safe.
    pub(in crate::worker) async fn halted(&mut self) -> Halt {
        self.halt.wait_for(Option::is_some).await.map_or(Halt::Lost, |halt| halt.unwrap_or(Halt::Lost))
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        self.running.leave(self.turn, self.epoch, self.number);
    }
}

impl Running {
    /// Gives a claimed turn its entry in the list; `None` where the claim was released. A turn that is under way
    /// elsewhere needs no slot to come here.
    pub(in crate::worker) fn admit(self: &Arc<Self>, claim: &Claim, slot: Option<TurnSlot>) -> Option<Reach> {
        let (turn, epoch) = (claim.turn, claim.epoch);
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let (halt, halted) = watch::channel(None);
        let due = Arc::new(Mutex::new(Instant::now()));
        let mut list = self.lock();
        if list.past.is_released(turn, epoch) {
            return None;
        }
        list.count += 1;
        let number = list.count;
        let entry = RunningTurn { number, epoch, worker: None, orders: sender, halt, due: due.clone() };
        if let Some(older) = list.turns.insert(turn, entry) {
            // An older claim of the same turn, by this very replica: its epoch is over, or it went on elsewhere
            // meanwhile.
            older.halt.send_replace(Some(Halt::Lost));
        }
        drop(list);
        metrics::queue_wait(Duration::from_millis(claim.waited_ms.unsigned_abs()));
        Some(Reach { orders, halt: halted, due, running: self.clone(), turn, epoch, number, slot })
    }

    fn leave(&self, turn: TurnId, epoch: i32, number: u64) {
        let mut list = self.lock();
        // A later claim of the same turn has an entry of its own.
        if list.turns.get(&turn).is_some_and(|entry| entry.number == number) {
            list.turns.remove(&turn);
        }
        list.past.note(turn, epoch, ClaimFate::MaybeDelivered);
    }

    /// Releases a claim that runs here, and that no worker has received: none will.
    pub(in crate::worker) fn release(&self, claim: &Claim) {
        self.lock().past.note(claim.turn, claim.epoch, ClaimFate::Released);
    }

    /// Releases a claim that does not run here; false where a worker may have received it.
    pub(in crate::worker) fn release_unless_delivered(&self, turn: TurnId, epoch: i32) -> bool {
        let mut list = self.lock();
        !list.turns.contains_key(&turn)
            && list.past.note(turn, epoch, ClaimFate::Released) == ClaimFate::Released
    }

    /// A worker may have received this claim, whoever held it.
    pub(in crate::worker) fn note_delivered(&self, turn: TurnId, epoch: i32) {
        self.lock().past.note(turn, epoch, ClaimFate::MaybeDelivered);
    }

    /// Whether this claim runs here.
    pub(in crate::worker) fn has(&self, claim: &Claim) -> bool {
        self.runs_at(claim.turn, claim.epoch)
    }

    /// Whether this attempt of a turn runs here.
    pub(in crate::worker) fn runs_at(&self, turn: TurnId, epoch: i32) -> bool {
        self.lock().turns.get(&turn).is_some_and(|entry| entry.epoch == epoch)
    }

    /// Each turn's epoch.
    pub(in crate::worker) fn epochs(&self) -> HashMap<TurnId, i32> {
        self.lock().turns.iter().map(|(&turn, entry)| (turn, entry.epoch)).collect()
    }

    /// How long each has until its next clock lapses.
    pub(in crate::worker) fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        let now = Instant::now();
        let left = |entry: &RunningTurn| {
            entry.due.lock().unwrap_or_else(PoisonError::into_inner).saturating_duration_since(now)
        };
        self.lock().turns.iter().map(|(&turn, entry)| (turn, entry.epoch, left(entry))).collect()
    }

    /// Hands over an order; it is read again later where that is not possible.
    pub(in crate::worker) fn order(&self, command: Command) {
        let orders = self.lock().turns.get(&command.turn).map(|entry| entry.orders.clone());
        if let Some(orders) = orders {
            let _ = orders.try_send(command);
        }
    }

    /// Halts one attempt of a turn.
    pub(in crate::worker) fn halt(&self, turn: TurnId, epoch: i32, why: Halt) {
        if let Some(entry) = self.lock().turns.get(&turn).filter(|entry| entry.epoch == epoch) {
            entry.halt.send_replace(Some(why));
        }
    }

    /// Halts each, unless it is halted already.
    pub(in crate::worker) fn halt_all(&self, why: Halt) {
        for entry in self.lock().turns.values() {
            entry.halt.send_if_modified(|halt| halt.is_none() && halt.replace(why).is_none());
        }
    }

    /// The turn runs on this worker.
    pub(in crate::worker) fn note_worker(&self, turn: TurnId, worker: WorkerId) {
        if let Some(entry) = self.lock().turns.get_mut(&turn) {
            entry.worker = Some(worker);
        }
    }

    /// The turns that run on this worker.
    pub(in crate::worker) fn of_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        let list = self.lock();
        list.turns.iter().filter(|(_, entry)| entry.worker == Some(worker)).map(|(&turn, _)| turn).collect()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
