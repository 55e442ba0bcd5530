//! Measures how long the pipes of shared workers were blocked by a turn with too much output.
//!
//! A blocked worker can be heard for none of its turns, so that time counts as no turn's silence (I8).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Blocked time of one shared worker, or of several together.
#[derive(Debug, Default)]
pub(crate) struct Waits(Mutex<WaitState>);

#[derive(Debug, Default)]
struct WaitState {
    over: Duration,
    /// The number of blocked pipes, and since when at least one is.
    waiting: usize,
    since: Option<Instant>,
}

/// One blocked pipe, until dropped.
pub(crate) struct PipeWait<'a>(&'a Waits);

impl Waits {
    /// A pipe is blocked from now on.
    pub fn begin(&self) -> PipeWait<'_> {
        self.0.lock().begin(Instant::now());
        PipeWait(self)
    }

    /// The total until now.
    pub fn total(&self) -> Duration {
        self.0.lock().total(Instant::now())
    }
}

impl WaitState {
    fn begin(&mut self, now: Instant) {
        self.waiting += 1;
        self.since.get_or_insert(now);
    }

    fn end(&mut self, now: Instant) {
        self.waiting -= 1;
        if self.waiting == 0 {
            self.over = self.total(now);
            self.since = None;
        }
    }

    fn total(&self, now: Instant) -> Duration {
        self.over + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Drop for PipeWait<'_> {
    fn drop(&mut self) {
        self.0.0.lock().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_at_one_time_count_once() {
        let (mut state, began) = (WaitState::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        state.begin(at(0));
        state.begin(at(1));
        state.end(at(2));
        assert_eq!(state.total(at(3)), Duration::from_secs(3));
        state.end(at(3));
        assert_eq!(state.total(at(4)), Duration::from_secs(3));
        state.begin(at(4));
        assert_eq!(state.total(at(5)), Duration::from_secs(4));
    }
}
