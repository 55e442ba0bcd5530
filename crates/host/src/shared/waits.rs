//! For how long the pipes of shared workers have waited, since one of their turns had more to say than was taken.
//!
//! Meanwhile such a worker can be heard for none of its turns: that time counts as nobody's silence (I8).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The waits of one shared worker, or of several together.
#[derive(Debug, Default)]
pub struct Waits(Mutex<WaitState>);

#[derive(Debug, Default)]
struct WaitState {
    over: Duration,
    /// How many pipes wait now, and since when one does.
    waiting: usize,
    since: Option<Instant>,
}

/// A wait, from its beginning to its drop.
pub struct PipeWait<'a>(&'a Waits);

impl Waits {
    /// A pipe waits.
    pub fn begin(&self) -> PipeWait<'_> {
        self.state().begin(Instant::now());
        PipeWait(self)
    }

    /// For how long in all, until now.
    pub fn total(&self) -> Duration {
        self.state().total(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, WaitState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.0.state().end(Instant::now());
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
