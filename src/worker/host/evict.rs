//! Slots for workers that are to be started, and who leaves for them.

use super::{Host, Life, lock};
use crate::{telemetry::metrics, worker::slots::Slot};

impl Life {
    fn is_evictable(&self) -> bool {
        self.is_idle && !self.stop.is_cancelled()
    }
}

impl Host {
    /// A slot for a worker that is to be started; the worker that has been idle for longest leaves for it where
    /// none is free. Cancel-safe.
    pub(in crate::worker) async fn slot(&self) -> Slot {
        self.0.slots.take(|| self.evict()).await
    }

    /// Whether a start waits for a slot that nobody gives up yet.
    pub(in crate::worker) fn is_short(&self) -> bool {
        self.0.slots.is_short()
    }

    /// Ends so many workers that have no turn, the longest idle first: what they hold is wanted by others.
    pub fn end_idle(&self, most: usize) {
        (0..most).for_each(|_| self.evict());
    }

    /// Tells operators how near this host's bounds are.
    pub fn note_bounds(&self) {
        let places = self.places();
        let taken = places.count().saturating_sub(places.free());
        metrics::bound("turns", taken as u64, places.count() as u64);
        self.0.writer.note_bounds();
    }

    /// Sends the worker away that has been idle for longest; none where all have something to do.
    fn evict(&self) {
        let lives = lock(&self.0.lives);
        let idle = lives.values().filter(|life| life.is_evictable());
        let own = idle.min_by_key(|life| life.idle_since);
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
    pub(in crate::worker) fn startable(&self, most: usize) -> usize {
        let free = self.0.slots.free();
        if free >= most {
            return most;
        }
        let idle = lock(&self.0.lives).values().filter(|life| life.is_evictable()).count();
        let idle = idle + self.0.pool.idle();
        (free + idle).min(most)
    }
}
