//! Slots: the bound on this host's worker processes, in every state from start to end.
//!
//! Owns the count. A start beyond the bound waits until a process has ended, and makes an idle worker leave.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of one host. Clones share the count.
#[derive(Debug, Clone)]
pub struct Slots(Arc<SlotCounts>);

#[derive(Debug)]
struct SlotCounts {
    free: Arc<Semaphore>,
    max: usize,
    /// Starts that wait for a slot.
    waiting: AtomicUsize,
    /// Workers that are about to free their slots.
    leaving: AtomicUsize,
}

/// A worker's slot, held from before its start until after its end. Dropping it frees the slot.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    is_leaving: AtomicBool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Slots {
    /// A bound of `max` processes.
    pub fn new(max: u32) -> Self {
        let max = max as usize;
        let free = Arc::new(Semaphore::new(max));
        Slots(Arc::new(SlotCounts { free, max, waiting: AtomicUsize::new(0), leaving: AtomicUsize::new(0) }))
    }

    /// Takes a slot, or waits for one. `evict` stops the longest idle worker, if any. Cancel-safe.
    pub async fn take(&self, evict: impl FnOnce()) -> Slot {
        if let Ok(permit) = self.0.free.clone().try_acquire_owned() {
            return self.slot(Some(permit));
        }
        let _waiting = SlotWait::begin(self);
        evict();
        // The semaphore is never closed.
        self.slot(self.0.free.clone().acquire_owned().await.ok())
    }

    /// Whether more starts wait than workers are leaving: a worker that falls idle should then leave.
    pub fn is_short(&self) -> bool {
        self.0.waiting.load(Ordering::Acquire) > self.0.leaving.load(Ordering::Acquire)
    }

    /// The number of free slots.
    pub fn free(&self) -> usize {
        self.0.free.available_permits()
    }

    /// The number of slots in use.
    pub fn used(&self) -> usize {
        self.0.max.saturating_sub(self.free())
    }

    /// The bound.
    pub fn max(&self) -> usize {
        self.0.max
    }

    fn slot(&self, permit: Option<OwnedSemaphorePermit>) -> Slot {
        Slot { slots: self.clone(), is_leaving: AtomicBool::new(false), _permit: permit }
    }
}

impl Slot {
    /// Marks the worker as leaving: it takes no more turns.
    pub fn leave(&self) {
        if !self.is_leaving.swap(true, Ordering::AcqRel) {
            self.slots.0.leaving.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if *self.is_leaving.get_mut() {
            self.slots.0.leaving.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Counts a waiting start until dropped.
struct SlotWait<'a>(&'a Slots);

impl<'a> SlotWait<'a> {
    fn begin(slots: &'a Slots) -> Self {
        slots.0.waiting.fetch_add(1, Ordering::AcqRel);
        SlotWait(slots)
    }
}

impl Drop for SlotWait<'_> {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_finds_no_slot_has_an_idle_worker_sent_away_and_waits_for_its_end() {
        let slots = Slots::new(1);
        let first = slots.take(|| unreachable!("one is free")).now_or_never().unwrap();
        assert_eq!((slots.used(), slots.free(), slots.max()), (1, 0, 1));
        let asked = Cell::new(0);
        let mut second = Box::pin(slots.take(|| asked.set(asked.get() + 1)));
        assert!((&mut second).now_or_never().is_none() && asked.get() == 1 && slots.is_short());
        first.leave();
        first.leave();
        assert!(!slots.is_short(), "one leaves for it");
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!(slots.used() == 1 && !slots.is_short() && asked.get() == 1);
        drop(Box::pin(slots.take(|| {})).now_or_never());
        assert!(!slots.is_short(), "one that waits no more needs none");
        drop(second);
        assert_eq!(slots.free(), 1);
    }
}
