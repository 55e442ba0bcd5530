//! The turns under way on this replica, and the channels to each.
//!
//! Owns the list of running turns and the fate of claims that have left it ([`super::past_claims`]), both under
//! one lock: an admitted claim is always in exactly one of the two. Refuses a claim that was released.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
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

/// Commands that may wait for one turn.
const ORDERS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(in crate::worker) struct Running(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    turns: HashMap<TurnId, RunningTurn>,
    past: PastClaims,
    /// Admissions so far; the source of `Entry::number`.
    count: u64,
}

/// One running turn, as the rest of the replica reaches it.
#[derive(Debug)]
struct RunningTurn {
    /// Distinguishes two admissions with the same epoch: a remote turn may leave and come back.
    number: u64,
    epoch: i32,
    worker: Option<WorkerId>,
    orders: mpsc::Sender<Command>,
    halt: watch::Sender<Option<Halt>>,
    /// The turn's next deadline, set by its run loop.
    due: Arc<Mutex<Instant>>,
}

/// The run loop's end of the channels to one turn. Dropping it removes the turn from the list, then frees the
/// slot.
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

/// A message from the rest of the replica to a running turn.
#[derive(Debug)]
pub(in crate::worker) enum Interruption {
    /// A client's command.
    Order(Command),
    /// The turn must end on this replica.
    Halt(Halt),
}

impl Reach {
    /// Frees the turn's slot early: the turn waits for a pod, which uses no slot here.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "nothing waits like that"))]
    pub(in crate::worker) fn free_slot(&mut self) {
        self.slot = None;
    }

    /// Publishes the turn's next deadline.
    pub(in crate::worker) fn set_due(&self, at: Instant) {
        *self.due.lock() = at;
    }

    /// Waits for the next call; a halt comes before commands. Cancel-safe.
    pub(in crate::worker) async fn call(&mut self) -> Interruption {
        let Reach { orders, halt, .. } = self;
        tokio::select! {
            biased;
            halt = halt.wait_for(Option::is_some) => Interruption::Halt(halt.map_or(Halt::Lost, |halt| halt.unwrap_or(Halt::Lost))),
            Some(command) = orders.recv() => Interruption::Order(command),
        }
    }

    /// Waits for a halt and leaves commands in their queue. Cancel-safe.
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
    /// Lists a claimed turn as running; `None` if the claim was released. A turn that already runs elsewhere and
    /// moves here needs no slot.
    pub(in crate::worker) fn admit(self: &Arc<Self>, claim: &Claim, slot: Option<TurnSlot>) -> Option<Reach> {
        let (turn, epoch) = (claim.turn, claim.epoch);
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let (halt, halted) = watch::channel(None);
        let due = Arc::new(Mutex::new(Instant::now()));
        let mut list = self.0.lock();
        if list.past.is_released(turn, epoch) {
            return None;
        }
        list.count += 1;
        let number = list.count;
        let entry = RunningTurn { number, epoch, worker: None, orders: sender, halt, due: due.clone() };
        if let Some(older) = list.turns.insert(turn, entry) {
            // An earlier admission of the same turn on this replica: its epoch is over, or the turn moved away and
            // came back.
            older.halt.send_replace(Some(Halt::Lost));
        }
        drop(list);
        // A turn that moves here has waited for its claim before, at another replica.
        if slot.is_some() {
            metrics::queue_wait(Duration::from_millis(claim.waited_ms.unsigned_abs()));
        }
        Some(Reach { orders, halt: halted, due, running: self.clone(), turn, epoch, number, slot })
    }

    fn leave(&self, turn: TurnId, epoch: i32, number: u64) {
        let mut list = self.0.lock();
        // A later claim of the same turn has its own entry and stays.
        if list.turns.get(&turn).is_some_and(|entry| entry.number == number) {
            list.turns.remove(&turn);
        }
        list.past.note(turn, epoch, ClaimFate::MaybeDelivered);
    }

    /// Releases a claim that runs here and that no worker has received. From now on no worker here receives the
    /// turn.
    pub(in crate::worker) fn release(&self, claim: &Claim) {
        self.0.lock().past.note(claim.turn, claim.epoch, ClaimFate::Released);
    }

    /// Releases a claim that does not run here. Returns false if a worker may already have received the turn.
    pub(in crate::worker) fn release_unless_delivered(&self, turn: TurnId, epoch: i32) -> bool {
        let mut list = self.0.lock();
        !list.turns.contains_key(&turn)
            && list.past.note(turn, epoch, ClaimFate::Released) == ClaimFate::Released
    }

    /// Records that a worker may have received this claim, whichever replica held the claim.
    pub(in crate::worker) fn note_delivered(&self, turn: TurnId, epoch: i32) {
        self.0.lock().past.note(turn, epoch, ClaimFate::MaybeDelivered);
    }

    pub(in crate::worker) fn has(&self, claim: &Claim) -> bool {
        self.runs_at(claim.turn, claim.epoch)
    }

    /// Whether this attempt of the turn runs here.
    pub(in crate::worker) fn runs_at(&self, turn: TurnId, epoch: i32) -> bool {
        self.0.lock().turns.get(&turn).is_some_and(|entry| entry.epoch == epoch)
    }

    /// The epoch of each running turn.
    pub(in crate::worker) fn epochs(&self) -> HashMap<TurnId, i32> {
        self.0.lock().turns.iter().map(|(&turn, entry)| (turn, entry.epoch)).collect()
    }

    /// The time until each turn's next deadline.
    pub(in crate::worker) fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        let now = Instant::now();
        let left = |entry: &RunningTurn| entry.due.lock().saturating_duration_since(now);
        self.0.lock().turns.iter().map(|(&turn, entry)| (turn, entry.epoch, left(entry))).collect()
    }

    /// Passes a command on. A command that does not fit the queue is read from the database again later.
    pub(in crate::worker) fn order(&self, command: Command) {
        let orders = self.0.lock().turns.get(&command.turn).map(|entry| entry.orders.clone());
        if let Some(orders) = orders {
            let _ = orders.try_send(command);
        }
    }

    pub(in crate::worker) fn halt(&self, turn: TurnId, epoch: i32, why: Halt) {
        if let Some(entry) = self.0.lock().turns.get(&turn).filter(|entry| entry.epoch == epoch) {
            entry.halt.send_replace(Some(why));
        }
    }

    /// Halts every turn that is not halted yet.
    pub(in crate::worker) fn halt_all(&self, why: Halt) {
        for entry in self.0.lock().turns.values() {
            entry.halt.send_if_modified(|halt| halt.is_none() && halt.replace(why).is_none());
        }
    }

    pub(in crate::worker) fn note_worker(&self, turn: TurnId, worker: WorkerId) {
        if let Some(entry) = self.0.lock().turns.get_mut(&turn) {
            entry.worker = Some(worker);
        }
    }

    pub(in crate::worker) fn of_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        let list = self.0.lock();
        list.turns.iter().filter(|(_, entry)| entry.worker == Some(worker)).map(|(&turn, _)| turn).collect()
    }
}
