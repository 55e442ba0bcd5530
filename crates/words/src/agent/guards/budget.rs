//! A budget of processor time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// This thread's processor time, against a budget of it. A busy machine takes none of that.
pub(super) struct Budget {
    from: Option<Duration>,
    budget: Duration,
}

impl Budget {
    /// From now on.
    pub(super) fn start(budget: Duration) -> Budget {
        Budget { from: spent(), budget }
    }

    /// What is left of it. Nothing where there is no such clock: fails closed.
    pub(super) fn left(&self) -> Duration {
        let used = self.from.zip(spent()).map(|(from, now)| now.saturating_sub(from));
        self.budget.saturating_sub(used.unwrap_or(Duration::MAX))
    }
}

fn spent() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok().map(Duration::from)
}
