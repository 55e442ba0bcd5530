//! When this process looked for somebody else's locks, and told of them: at most one line a minute a session.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::telemetry::metrics;

/// From one line about a session to the next.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// From one look at a row to the next.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Rows in one look.
pub(in crate::store) const ROWS_MAX: usize = 256;

/// When what was looked at, and told.
#[derive(Debug, Default)]
pub(in crate::store) struct BlockersTold(Mutex<ToldTimes>);

#[derive(Debug, Default)]
struct ToldTimes {
    looked_at: HashMap<Uuid, Instant>,
    told_at: HashMap<Option<i32>, Instant>,
}

impl BlockersTold {
    /// Of these, what is to be looked at now.
    pub(in crate::store) fn due(&self, ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.looked_at.retain(|_, at| at.elapsed() < LOOK_EVERY);
        let due: Vec<Uuid> = ids.filter(|id| !times.looked_at.contains_key(id)).take(ROWS_MAX).collect();
        times.looked_at.extend(due.iter().map(|id| (*id, Instant::now())));
        due
    }

    /// Whether it is time for a line about this session.
    pub(in crate::store) fn may_tell(&self, pid: Option<i32>) -> bool {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.told_at.retain(|_, at| at.elapsed() < TOLD_EVERY);
        let is_new = !times.told_at.contains_key(&pid);
        if is_new {
            times.told_at.insert(pid, Instant::now());
            metrics::blocker_met();
        }
        is_new
    }
}
