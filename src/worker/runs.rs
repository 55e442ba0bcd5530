//! Runs: the turns under way on this replica, and the ways to reach each.
//!
//! Owns the list of them, and what became of the claims that have left it ([`super::fates`]), under one lock:
//! at any moment a claim that was admitted is in the one or the other. Refuses a claim that was given up.

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
    fates::{Fate, Fates},
    host::Host,
    job::{Halt, Reach},
    places::Permit,
};
use crate::{
    id::{TurnId, WorkerId},
    store::{claim::Claim, commands::Command},
    telemetry::metrics,
};

/// Orders that may wait for one turn.
const ORDERS_MAX: usize = 16;

/// The turns under way.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    runs: HashMap<TurnId, Run>,
    fates: Fates,
    /// How many were ever admitted.
    count: u64,
}

/// A turn under way, as others reach it.
#[derive(Debug)]
struct Run {
    /// Which one: a remote turn may come again with the same epoch.
    number: u64,
    epoch: i32,
    worker: Option<WorkerId>,
    orders: mpsc::Sender<Command>,
    halt: watch::Sender<Option<Halt>>,
    /// When its next clock lapses, as its run last set it.
    due: Arc<Mutex<Instant>>,
}

/// A turn's place on this replica, and its line in the list of runs.
#[derive(Debug)]
pub(super) struct Place {
    host: Host,
    turn: TurnId,
    epoch: i32,
    number: u64,
    permit: Option<Permit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.host.run_list().leave(self.turn, self.epoch, self.number);
        self.free();
    }
}

impl Place {
    /// Makes the place free, and keeps the turn in the list.
    pub(super) fn free(&mut self) {
        // First the place is free, then the next turn is looked for, where one may have waited for it.
        if self.permit.take().is_some() && self.host.places().is_wanted() {
            self.host.store().wake().queue.look();
        }
    }
}

impl Runs {
    /// Gives a claimed turn its place and its line in the list; `None` where the claim was given up.
    /// A turn that is under way elsewhere needs no place to come here.
    pub(super) fn admit(&self, host: &Host, claim: &Claim, permit: Option<Permit>) -> Option<Reach> {
        let (orders, incoming) = mpsc::channel(ORDERS_MAX);
        let (halt, halted) = watch::channel(None);
        let due = Arc::new(Mutex::new(Instant::now()));
        let mut list = self.lock();
        if list.fates.is_forgone(claim.turn, claim.epoch) {
            return None;
        }
        list.count += 1;
        let number = list.count;
        let run = Run { number, epoch: claim.epoch, worker: None, orders, halt, due: due.clone() };
        if let Some(older) = list.runs.insert(claim.turn, run) {
            // An older claim of the same turn, by this very replica: its epoch is over, or it went on elsewhere
            // meanwhile.
            older.halt.send_replace(Some(Halt::Lost));
        }
        drop(list);
        metrics::queue_wait(Duration::from_millis(claim.waited_ms.unsigned_abs()));
        let place = Place { host: host.clone(), turn: claim.turn, epoch: claim.epoch, number, permit };
        Some(Reach::new(incoming, halted, due, place))
    }

    fn leave(&self, turn: TurnId, epoch: i32, number: u64) {
        let mut list = self.lock();
        // A later claim of the same turn has a line of its own.
        if list.runs.get(&turn).is_some_and(|run| run.number == number) {
            list.runs.remove(&turn);
        }
        list.fates.note(turn, epoch, Fate::Had);
    }

    /// Gives up a claim that runs here, and that no worker has received: none will.
    pub(super) fn forgo(&self, claim: &Claim) {
        self.lock().fates.note(claim.turn, claim.epoch, Fate::Forgone);
    }

    /// Gives up a claim that does not run here; false where a worker may have had it.
    pub(super) fn forgo_unless_had(&self, turn: TurnId, epoch: i32) -> bool {
        let mut list = self.lock();
        !list.runs.contains_key(&turn) && list.fates.note(turn, epoch, Fate::Forgone) == Fate::Forgone
    }

    /// A worker may have had this claim, whoever held it.
    pub(super) fn note_had(&self, turn: TurnId, epoch: i32) {
        self.lock().fates.note(turn, epoch, Fate::Had);
    }

    /// Whether this claim runs here.
    pub(super) fn has(&self, claim: &Claim) -> bool {
        self.runs_at(claim.turn, claim.epoch)
    }

    /// Whether this attempt of a turn runs here.
    pub(super) fn runs_at(&self, turn: TurnId, epoch: i32) -> bool {
        self.lock().runs.get(&turn).is_some_and(|run| run.epoch == epoch)
    }

    pub(super) fn epochs(&self) -> HashMap<TurnId, i32> {
        self.lock().runs.iter().map(|(&turn, run)| (turn, run.epoch)).collect()
    }

    /// How long each has until its next clock lapses.
    pub(super) fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        let now = Instant::now();
        let left =
            |run: &Run| run.due.lock().unwrap_or_else(PoisonError::into_inner).saturating_duration_since(now);
        self.lock().runs.iter().map(|(&turn, run)| (turn, run.epoch, left(run))).collect()
    }

    /// Hands over an order; it is read again later where that is not possible.
    pub(super) fn order(&self, command: Command) {
        let orders = self.lock().runs.get(&command.turn).map(|run| run.orders.clone());
        if let Some(orders) = orders {
            let _ = orders.try_send(command);
        }
    }

    pub(super) fn halt(&self, turn: TurnId, epoch: i32, why: Halt) {
        if let Some(run) = self.lock().runs.get(&turn).filter(|run| run.epoch == epoch) {
            run.halt.send_replace(Some(why));
        }
    }

    /// Each, unless it is halted already.
    pub(super) fn halt_all(&self, why: Halt) {
        for run in self.lock().runs.values() {
            run.halt.send_if_modified(|halt| halt.is_none() && halt.replace(why).is_none());
        }
    }

    pub(super) fn note_worker(&self, turn: TurnId, worker: WorkerId) {
        if let Some(run) = self.lock().runs.get_mut(&turn) {
            run.worker = Some(worker);
        }
    }

    pub(super) fn of_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        let list = self.lock();
        list.runs.iter().filter(|(_, run)| run.worker == Some(worker)).map(|(&turn, _)| turn).collect()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
