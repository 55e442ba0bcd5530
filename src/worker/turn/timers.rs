//! The clocks of one turn, kept by its holder on this machine's monotonic time.
//!
//! Pure. The in-flight row holds the same deadline on the database's clock, for other replicas to judge by if this
//! one is gone; the row may lag by up to 10 s.

use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Code;

pub(in crate::worker) const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// What happens when the next clock lapses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Lapse {
    /// The turn fails with this code.
    Fails(Code),
    /// The worker did not obey a cancel in time.
    Cancels,
}

#[derive(Debug)]
pub(in crate::worker) struct Clocks {
    cap: Instant,
    cancel: Option<Instant>,
    step: (Instant, Code),
}

impl Clocks {
    /// At the claim: the startup clock and the cap start.
    pub(in crate::worker) fn claimed(now: Instant, startup: Duration, cap_left: Duration) -> Self {
        Clocks { cap: now + cap_left, cancel: None, step: (now + startup, Code::WorkerStartupFailed) }
    }

    /// The worker owes an event within `budget`.
    pub(in crate::worker) fn expect_progress(&mut self, now: Instant, budget: Duration) {
        self.step = (now + budget, Code::WorkerUnresponsive);
    }

    /// Moves the current deadline by time in which the worker could not be heard.
    pub(in crate::worker) fn excuse(&mut self, passed: Duration) {
        self.step.0 += passed;
    }

    /// The user owes an answer within `budget`.
    pub(in crate::worker) fn expect_answer(&mut self, now: Instant, budget: Duration) {
        self.step = (now + budget, Code::AnswerTimeout);
    }

    /// Starts the grace period of a cancel, once.
    pub(in crate::worker) fn cancel(&mut self, now: Instant) {
        self.cancel.get_or_insert(now + CANCEL_GRACE);
    }

    /// The time until the cap; zero if passed.
    pub(in crate::worker) fn cap_left(&self, now: Instant) -> Duration {
        self.cap.saturating_duration_since(now)
    }

    /// The next deadline. A cancel's grace replaces the current step; the cap bounds both.
    pub(in crate::worker) fn next(&self) -> (Instant, Lapse) {
        if let Some(cancel) = self.cancel {
            return (cancel.min(self.cap), Lapse::Cancels);
        }
        let (step, code) = self.step;
        if self.cap <= step {
            (self.cap, Lapse::Fails(Code::TurnTimeout))
        } else {
            (step, Lapse::Fails(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_nearest_clock_lapses_first() {
        let now = Instant::now();
        let mut clocks = Clocks::claimed(now, 60 * SECOND, 1800 * SECOND);
        assert_eq!(clocks.next(), (now + 60 * SECOND, Lapse::Fails(Code::WorkerStartupFailed)));
        clocks.expect_progress(now, 120 * SECOND);
        assert_eq!(clocks.next(), (now + 120 * SECOND, Lapse::Fails(Code::WorkerUnresponsive)));
        clocks.expect_answer(now, 900 * SECOND);
        assert_eq!(clocks.next(), (now + 900 * SECOND, Lapse::Fails(Code::AnswerTimeout)));
        clocks.expect_progress(now, 7200 * SECOND);
        assert_eq!(clocks.next(), (now + 1800 * SECOND, Lapse::Fails(Code::TurnTimeout)));
    }

    #[test]
    fn a_lapse_after_a_cancel_is_a_cancel() {
        let now = Instant::now();
        let mut clocks = Clocks::claimed(now, 60 * SECOND, 1800 * SECOND);
        clocks.cancel(now);
        clocks.cancel(now + SECOND);
        assert_eq!(clocks.next(), (now + CANCEL_GRACE, Lapse::Cancels));
    }
}
