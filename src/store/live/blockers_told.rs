//! Rate limits for reports about foreign locks: one look per row every 10 s, one log line per session a minute.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::telemetry::metrics;

/// Least time between two log lines about one session.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Least time between two looks at one row.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Rows examined in one look.
pub(in crate::store) const ROWS_MAX: usize = 256;

/// When each row was last examined, and each session last reported.
#[derive(Debug, Default)]
pub(in crate::store) struct BlockersTold(Mutex<ToldTimes>);

#[derive(Debug, Default)]
struct ToldTimes {
    looked_at: HashMap<Uuid, Instant>,
    told_at: HashMap<Option<i32>, Instant>,
}

impl BlockersTold {
    /// Of these rows, those due to be examined now.
    pub(in crate::store) fn due(&self, ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
        let mut times = self.0.lock();
        times.looked_at.retain(|_, at| at.elapsed() < LOOK_EVERY);
        let due: Vec<Uuid> = ids.filter(|id| !times.looked_at.contains_key(id)).take(ROWS_MAX).collect();
        times.looked_at.extend(due.iter().map(|id| (*id, Instant::now())));
        due
    }

    /// Whether a log line about this session is due.
    pub(in crate::store) fn may_tell(&self, pid: Option<i32>) -> bool {
        let mut times = self.0.lock();
        times.told_at.retain(|_, at| at.elapsed() < TOLD_EVERY);
        let is_new = !times.told_at.contains_key(&pid);
        if is_new {
            times.told_at.insert(pid, Instant::now());
            metrics::blocker_met();
        }
        is_new
    }
}
