//! The workers of this program: which of them serves which turn.
//!
//! Owns the conversations' own workers, the pool of shared ones, and the slots that all of them take. Refuses a process
//! beyond the slots: the longest idle worker leaves for a start that finds none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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

/// The interval at which the last processes' ends are looked for.
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

/// A conversation's own worker, as others reach it.
#[derive(Debug)]
pub struct OwnWorker<T: HostedTurn> {
    /// The worker.
    pub worker: WorkerId,
    /// What it serves.
    pub fit: T::Fit,
    /// Whether it has no turn.
    pub is_idle: bool,
    pub(super) turns: mpsc::Sender<T>,
    pub(super) stop: CancellationToken,
    pub(super) renewer: Option<Renewer>,
    /// When it fell idle last.
    pub(super) idle_since: Instant,
}

/// How many workers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Those without a turn.
    pub idle: usize,
    /// Those with one.
    pub busy: usize,
}

impl<T: HostedTurn> OwnWorker<T> {
    /// Whether it is given turns.
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
    /// A host of no workers yet, and of this many at most.
    pub fn new(owner: O, workers_max: u32) -> Self {
        let (slots, own, pool) = (Slots::new(workers_max), Mutex::default(), Pool::default());
        WorkerHost(Arc::new(HostParts { owner, slots, own, pool }))
    }

    /// The program that this host is part of.
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

    /// What `look` makes of each conversation's own worker.
    pub fn own_workers<R>(
        &self,
        look: impl FnMut((&ConversationId, &OwnWorker<O::Turn>)) -> Option<R>,
    ) -> Vec<R> {
        self.owned().iter().filter_map(look).collect()
    }

    /// What `look` makes of one conversation's own worker.
    pub fn own_worker<R>(
        &self,
        conversation: ConversationId,
        look: impl FnOnce(&OwnWorker<O::Turn>) -> Option<R>,
    ) -> Option<R> {
        look(self.owned().get(&conversation)?)
    }

    /// A lane for `turn` to a shared worker of its agent that is ready at once.
    pub fn lane_at_once(&self, agent: (&str, i32), turn: TurnId) -> Option<Lane> {
        self.0.pool.lane_at_once(agent, turn)
    }

    /// Lanes of ready shared workers, kept for turns that are about to be claimed: half of what each has, and `most` of each
    /// at most. Workers whose inputs are checked first have none.
    pub fn reserve_lanes(&self, most: usize) -> Vec<ReservedLanes> {
        self.0.pool.reserve(most)
    }

    /// Whether a shared worker has room for another turn.
    pub fn has_free_lane(&self) -> bool {
        self.0.pool.has_room()
    }

    /// Lets a worker serve no other turn: it ends when it has none.
    pub fn retire(&self, worker: WorkerId) {
        self.stop_where(|_, own| own.worker == worker);
        self.0.pool.retire(Some(worker));
    }

    /// Lets no worker serve another turn: idle ones end now, others end with their turns.
    pub fn retire_all(&self) {
        self.stop_where(|_, _| true);
        self.0.pool.retire(None);
    }

    /// Stops conversations' own workers when the turn that each runs has ended.
    pub fn stop_where(&self, is_meant: impl Fn(ConversationId, &OwnWorker<O::Turn>) -> bool) {
        for (&conversation, own) in self.owned().iter() {
            if is_meant(conversation, own) {
                own.stop.cancel();
            }
        }
    }

    /// Stops the conversation's own worker when its turn has ended: another worker has the next turn.
    pub fn stop_worker_of(&self, conversation: ConversationId) {
        if let Some(own) = self.owned().get(&conversation) {
            own.stop.cancel();
        }
    }

    /// Ends every shared worker at once.
    pub fn kill_shared(&self) {
        self.0.pool.kill();
    }

    /// Proves this program's life to its workers' guards, and counts the workers.
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

    /// How many workers take turns here.
    pub fn count(&self) -> usize {
        self.owned().len() + self.0.pool.len()
    }

    /// Until no process is left.
    pub async fn none_left(&self) {
        while self.0.slots.used() > 0 {
            sleep(LOOK_EVERY).await;
        }
    }

    /// The total time for which the pipe of a shared worker waited, since one of its turns had more to say than was taken.
    /// Waits at one time count once.
    pub fn waited(&self) -> Duration {
        self.0.pool.waited()
    }

    /// A slot for a worker that is to be started; the worker that has been idle for longest leaves for it where
    /// none is free. Cancel-safe.
    pub(super) async fn slot(&self) -> Slot {
        self.0.slots.take(|| self.evict()).await
    }

    /// Ends this many workers that have no turn, the longest idle first: what they hold is wanted by others.
    pub fn end_idle(&self, most: usize) {
        (0..most).for_each(|_| self.evict());
    }

    /// Sends the worker away that has been idle for longest; none where all have something to do.
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

    /// How many workers more could be started now, as far as `most`: for each there is a slot, or an idle worker
    /// that would leave.
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

    /// The worker waits for its next turn; false where it is not wanted any more.
    pub(super) fn note_idle(&self, conversation: ConversationId, worker: WorkerId) -> bool {
        match self.owned().get_mut(&conversation).filter(|own| own.worker == worker) {
            // Its slot is wanted for another.
            Some(_) if self.0.slots.is_short() => false,
            Some(own) if own.is_wanted() => {
                own.is_idle = true;
                own.idle_since = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// The worker takes no more turns.
    pub(super) fn forget(&self, conversation: ConversationId, worker: WorkerId) {
        let mut owned = self.owned();
        if owned.get(&conversation).is_some_and(|own| own.worker == worker) {
            owned.remove(&conversation);
        }
    }

    pub(super) fn owned(&self) -> MutexGuard<'_, Owned<O>> {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
