//! The rate limit of logins while Postgres rejects them.
//!
//! Keeps the rule: while logins are rejected there is at most one a second, counted over the pool, listener, beat and
//! notify sender and over both database URLs. The pause doubles with each rejection, up to 5 s, plus jitter. After 5 s
//! without a successful login one login goes first, and the others wait briefly for its result.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard},
    time::{Instant, timeout},
};

/// Least time between two logins while logins are rejected.
const KNOCK_EVERY: Duration = Duration::from_secs(1);
/// The longest pause, without its jitter.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a successful login permits others to go at once.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// How long the beat, and any other caller, waits for the login that goes first. Short compared with a slow login, so
/// that all callers still finish within their own deadlines.
const HURRY: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(500);

/// State shared by all logins of a replica.
#[derive(Debug, Default)]
pub(in crate::store) struct Gate {
    alone: Arc<Turn<()>>,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    knocked_at: Option<Instant>,
    let_in_at: Option<Instant>,
}

impl Gate {
    /// Whether a login may be tried now, after a rejected one. A yes counts as the next try.
    pub(super) fn may_knock(&self, now: Instant) -> bool {
        let mut times = self.times.lock();
        let may = times.knocked_at.is_none_or(|at| now >= at + KNOCK_EVERY);
        if may {
            times.knocked_at = Some(now);
        }
        may
    }

    /// Notes a rejected login.
    pub(super) fn refused(&self, now: Instant) {
        let mut times = self.times.lock();
        (times.knocked_at, times.let_in_at) = (Some(now), None);
    }

    /// Notes a successful login.
    pub(super) fn let_in(&self, now: Instant) {
        self.times.lock().let_in_at = Some(now);
    }

    /// The time of the last successful login, if within 5 s.
    pub(super) fn let_in_at(&self, now: Instant) -> Option<Instant> {
        self.times.lock().let_in_at.filter(|at| now.duration_since(*at) < GOOD_FOR)
    }

    /// Waits until no other login goes first: up to 250 ms if `is_hurried`, else 500 ms.
    pub(super) async fn alone(&self, is_hurried: bool) -> Option<OwnedMutexGuard<()>> {
        let turn = self.alone.clone().lock_owned();
        timeout(if is_hurried { HURRY } else { PATIENCE }, turn).await.ok()
    }
}

/// The pause after this many rejections in a row, counted from 1; `jitter` from 0 to 1.
pub(super) fn pause(refusals: u32, jitter: f64) -> Duration {
    let doubled = KNOCK_EVERY.saturating_mul(1 << refusals.saturating_sub(1).min(8));
    doubled.min(PAUSE_MAX).mul_f64(1.0 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_some_seconds_and_never_fall_below_one() {
        let shown = [1, 2, 3, 4, 40].map(|n| (pause(n, 0.0).as_millis(), pause(n, 1.0).as_millis()));
        assert_eq!(shown, [(1000, 1500), (2000, 3000), (4000, 6000), (5000, 7500), (5000, 7500)]);
    }

    #[tokio::test]
    async fn one_knocks_a_second_and_the_beat_does_not_wait_for_one_who_hangs() {
        let (gate, now) = (Gate::default(), Instant::now());
        gate.refused(now);
        let knocks = (0..100).filter(|n| gate.may_knock(now + Duration::from_millis(50) * *n)).count();
        assert_eq!(knocks, 4);
        let hangs = gate.alone(false).await;
        assert!(gate.alone(true).await.is_none());
        drop(hangs);
        assert!(gate.alone(true).await.is_some());
    }
}
