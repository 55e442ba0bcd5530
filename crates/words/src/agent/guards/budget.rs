//! A budget of CPU time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The CPU time of this thread since the start, against a budget. Time spent by other threads does not count.
pub(super) struct Budget {
    from: Option<Duration>,
    budget: Duration,
}

impl Budget {
    /// Starts the budget now.
    pub(super) fn start(budget: Duration) -> Budget {
        Budget { from: spent(), budget }
    }

    /// The rest of the budget. Zero on a system without such a clock: fails closed.
    pub(super) fn left(&self) -> Duration {
        let used = self.from.zip(spent()).map(|(from, now)| now.saturating_sub(from));
        self.budget.saturating_sub(used.unwrap_or(Duration::MAX))
    }
}

fn spent() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok().map(Duration::from)
}
