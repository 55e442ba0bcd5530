//! How often this replica knocks at Postgres while Postgres lets it not in.
//!
//! Keeps the rule: while logins are refused there is at most one a second, over all that connect (pool, listener,
//! beat, notify sender) and over both database URLs. Each refusal makes the pause longer, up to five seconds, with
//! jitter. After a while without a login the first goes alone: whether it is let in tells the others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard},
    time::{Instant, timeout},
};

/// The least from one login that may be refused to the next.
const KNOCK_EVERY: Duration = Duration::from_secs(1);
/// The longest pause, before its jitter.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// So long a login that was let in counts for others.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// How long the beat, and anybody else, waits for the one who knocks. Short beside what a login may take: where logins are
/// slow, all must still come in within their time.
const HURRY: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(500);

/// What all logins of a replica share.
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
    /// Whether one may knock now where the last was refused. Whoever is told so does.
    pub(super) fn may_knock(&self, now: Instant) -> bool {
        let mut times = self.times();
        let may = times.knocked_at.is_none_or(|at| now >= at + KNOCK_EVERY);
        if may {
            times.knocked_at = Some(now);
        }
        may
    }

    /// A login was refused.
    pub(super) fn refused(&self, now: Instant) {
        let mut times = self.times();
        (times.knocked_at, times.let_in_at) = (Some(now), None);
    }

    /// A login was let in.
    pub(super) fn let_in(&self, now: Instant) {
        self.times().let_in_at = Some(now);
    }

    /// When a login was let in last.
    pub(super) fn let_in_at(&self, now: Instant) -> Option<Instant> {
        self.times().let_in_at.filter(|at| now.duration_since(*at) < GOOD_FOR)
    }

    /// Until nobody else knocks, for a while; who is in a hurry waits for a moment only.
    pub(super) async fn alone(&self, is_hurried: bool) -> Option<OwnedMutexGuard<()>> {
        let turn = self.alone.clone().lock_owned();
        timeout(if is_hurried { HURRY } else { PATIENCE }, turn).await.ok()
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait after so many refusals in a row, from 1; `jitter` from 0 to 1.
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
