//! The workers of one program, and which of them serves which turn.
//!
//! Owns the conversations' own workers, the pool of shared workers, and the slots of all processes. Never exceeds
//! the slots: a start without a free slot makes the longest idle worker leave.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    owner::{HostOwner, HostedTurn},
    process::Renewer,
    shared::{Lane, Pool, ReservedLanes},
    slots::{Slot, Slots},
};
use lastword_words::id::{ConversationId, TurnId, WorkerId};

/// Poll interval for the ends of the last processes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The workers of one program. Cheap to clone.
#[derive(Debug)]
pub struct WorkerHost<O: HostOwner>(Arc<HostParts<O>>);

#[derive(Debug)]
struct HostParts<O: HostOwner> {
    owner: O,
    slots: Slots,
    own: Mutex<Owned<O>>,
    pool: Pool,
}

pub(super) type Owned<O> = HashMap<ConversationId, OwnWorker<<O as HostOwner>::Turn>>;

/// A conversation's own worker, as the rest of the host reaches it.
#[derive(Debug)]
pub struct OwnWorker<T: HostedTurn> {
    /// The worker's id.
    pub worker: WorkerId,
    /// What the worker serves.
    pub fit: T::Fit,
    /// Whether the worker has no turn.
    pub is_idle: bool,
    pub(super) turns: mpsc::Sender<T>,
    pub(super) stop: CancellationToken,
    pub(super) renewer: Option<Renewer>,
    /// When the worker last fell idle.
    pub(super) idle_since: Instant,
}

/// The number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Workers without a turn.
    pub idle: usize,
    /// Workers with a turn.
    pub busy: usize,
}

impl<T: HostedTurn> OwnWorker<T> {
    /// Whether the worker takes more turns.
    pub fn is_wanted(&self) -> bool {
        !self.stop.is_cancelled()
    }

    fn is_evictable(&self) -> bool {
        self.is_idle && self.is_wanted()
    }
}

impl<O: HostOwner> Clone for WorkerHost<O> {
    fn clone(&self) -> Self {
        WorkerHost(Arc::clone(&self.0))
    }
}

impl<O: HostOwner> WorkerHost<O> {
    /// An empty host with `workers_max` slots.
    pub fn new(owner: O, workers_max: u32) -> Self {
        let (slots, own, pool) = (Slots::new(workers_max), Mutex::default(), Pool::default());
        WorkerHost(Arc::new(HostParts { owner, slots, own, pool }))
    }

    /// The program this host belongs to.
    pub fn owner(&self) -> &O {
        &self.0.owner
    }

    /// The slots for processes.
    pub fn slots(&self) -> &Slots {
        &self.0.slots
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Maps the conversations' own workers through `look`.
    pub fn own_workers<R>(
        &self,
        look: impl FnMut((&ConversationId, &OwnWorker<O::Turn>)) -> Option<R>,
    ) -> Vec<R> {
        self.owned().iter().filter_map(look).collect()
    }

    /// Passes one conversation's own worker to `look`; `None` if it has none.
    pub fn own_worker<R>(
        &self,
        conversation: ConversationId,
        look: impl FnOnce(&OwnWorker<O::Turn>) -> Option<R>,
    ) -> Option<R> {
        look(self.owned().get(&conversation)?)
    }

    /// A lane for `turn` at a ready shared worker of its agent.
    pub fn lane_at_once(&self, agent: (&str, i32), turn: TurnId) -> Option<Lane> {
        self.0.pool.lane_at_once(agent, turn)
    }

    /// Reserves lanes of ready shared workers for turns about to be claimed: half of each worker's free lanes, at
    /// most `most` each. Workers of guarded agents are left out.
    pub fn reserve_lanes(&self, most: usize) -> Vec<ReservedLanes> {
        self.0.pool.reserve(most)
    }

    /// Whether a shared worker has a free lane.
    pub fn has_free_lane(&self) -> bool {
        self.0.pool.has_room()
    }

    /// Gives the worker no more turns: it ends when it is idle.
    pub fn retire(&self, worker: WorkerId) {
        self.stop_where(|_, own| own.worker == worker);
        self.0.pool.retire(Some(worker));
    }

    /// Gives no worker more turns: idle workers end now, busy workers end with their turns.
    pub fn retire_all(&self) {
        self.stop_where(|_, _| true);
        self.0.pool.retire(None);
    }

    /// Stops the selected conversations' own workers as soon as each has finished its turn.
    pub fn stop_where(&self, is_meant: impl Fn(ConversationId, &OwnWorker<O::Turn>) -> bool) {
        for (&conversation, own) in self.owned().iter() {
            if is_meant(conversation, own) {
                own.stop.cancel();
            }
        }
    }

    /// Stops the conversation's own worker as soon as it has finished its turn: another worker serves the next
    /// one.
    pub fn stop_worker_of(&self, conversation: ConversationId) {
        if let Some(own) = self.owned().get(&conversation) {
            own.stop.cancel();
        }
    }

    /// Kills every shared worker.
    pub fn kill_shared(&self) {
        self.0.pool.kill();
    }

    /// Renews the lifeline of the workers' guards. Returns the number of workers.
    pub fn renew(&self) -> Census {
        let (mut idle, mut busy) = self.0.pool.renew();
        for own in self.owned().values() {
            *(if own.is_idle { &mut idle } else { &mut busy }) += 1;
            if let Some(renewer) = &own.renewer {
                renewer.renew(!own.is_idle);
            }
        }
        Census { idle, busy }
    }

    /// The number of workers that take turns.
    pub fn count(&self) -> usize {
        self.owned().len() + self.0.pool.len()
    }

    /// Waits until no process is left.
    pub async fn none_left(&self) {
        while self.0.slots.used() > 0 {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Total time in which a shared worker's pipe was blocked by a turn with too much output. Overlapping waits
    /// count once.
    pub fn waited(&self) -> Duration {
        self.0.pool.waited()
    }

    /// A slot for a new worker. If none is free the longest idle worker leaves. Cancel-safe.
    pub(super) async fn slot(&self) -> Slot {
        self.0.slots.take(|| self.evict()).await
    }

    /// Ends at most this many idle workers, the longest idle first, to free what they hold for others.
    pub fn end_idle(&self, most: usize) {
        (0..most).for_each(|_| self.evict());
    }

    /// Stops the longest idle worker, if any.
    fn evict(&self) {
        let owned = self.owned();
        let idle = owned.values().filter(|own| own.is_evictable());
        let own = idle.min_by_key(|own| own.idle_since);
        match (own, self.0.pool.longest_idle()) {
            (Some(own), Some((_, since))) if own.idle_since <= since => own.stop.cancel(),
            (Some(own), None) => own.stop.cancel(),
            (_, Some((shared, _))) => {
                shared.retire_if_idle();
            }
            (None, None) => {}
        }
    }

    /// How many workers could be started now, at most `most`: one for each free slot and each idle worker that
    /// would leave.
    pub fn startable(&self, most: usize) -> usize {
        let free = self.0.slots.free();
        if free >= most {
            return most;
        }
        let idle = self.owned().values().filter(|own| own.is_evictable()).count();
        (free + idle + self.0.pool.idle()).min(most)
    }

    pub(super) fn note_process(&self, conversation: ConversationId, worker: WorkerId, renewer: Renewer) {
        if let Some(own) = self.owned().get_mut(&conversation).filter(|own| own.worker == worker) {
            own.renewer = Some(renewer);
        }
    }

    /// Marks the worker as idle. Returns false if the worker is to end instead.
    pub(super) fn note_idle(&self, conversation: ConversationId, worker: WorkerId) -> bool {
        match self.owned().get_mut(&conversation).filter(|own| own.worker == worker) {
            // Another start waits for this slot.
            Some(_) if self.0.slots.is_short() => false,
            Some(own) if own.is_wanted() => {
                own.is_idle = true;
                own.idle_since = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// Removes a worker that takes no more turns.
    pub(super) fn forget(&self, conversation: ConversationId, worker: WorkerId) {
        let mut owned = self.owned();
        if owned.get(&conversation).is_some_and(|own| own.worker == worker) {
            owned.remove(&conversation);
        }
    }

    pub(super) fn owned(&self) -> MutexGuard<'_, Owned<O>> {
        self.0.own.lock()
    }
}
