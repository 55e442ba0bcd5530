//! Places: how many turns this replica runs at once.
//!
//! Owns the count, and whether a turn may wait for a place, so that the queue is looked at when one is free
//! and not after each turn.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one replica.
#[derive(Debug)]
pub(super) struct Places {
    count: u32,
    free: Arc<Semaphore>,
    is_wanting: AtomicBool,
}

impl Places {
    pub(super) fn new(count: u32) -> Self {
        let free = Arc::new(Semaphore::new(count as usize));
        Places { count, free, is_wanting: AtomicBool::new(false) }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// So many of them, where there are any and all of them are free.
    pub(super) fn take(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
        self.free.clone().try_acquire_many_owned(count).ok()
    }

    /// A turn may wait for the next place. True where one is free already.
    pub(super) fn want(&self) -> bool {
        self.is_wanting.store(true, Ordering::Release);
        self.free() > 0
    }

    /// Whether somebody has wanted one since this was asked.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanting.swap(false, Ordering::AcqRel)
    }
}
