//! Log lines about outages of Postgres: one at once, one a minute with a count, one when Postgres is back.
//!
//! ```text
//! there ──a connection fails──► away ──answers again, for a second──► there
//!                                 └── every minute: how many failures since the last line
//! ```
//! Owns these lines for the whole replica. Everything that uses a connection reports here, and nothing else logs that
//! Postgres is away. Failures while Postgres does answer (a lock timeout, a slow statement) get a line of their own, at
//! most one every 10 s.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::error::{FailureReach, StoreError};

/// Least time between two lines during an outage.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Postgres is back after answers without a failure for this long.
const QUIET_MIN: Duration = Duration::from_secs(1);
/// Least time between two lines about failures outside an outage.
const HICCUPS_EVERY: Duration = Duration::from_secs(10);

/// Reports outages.
#[derive(Debug, Default)]
pub(super) struct Outage {
    is_on: AtomicBool,
    tale: Mutex<Tale>,
}

#[derive(Debug, Default)]
struct Tale {
    /// When the outage began, and its newest failure.
    away: Option<(Instant, Instant)>,
    /// The first answer after that failure.
    answered_at: Option<Instant>,
    told_at: Option<Instant>,
    untold: u64,
    all: u64,
    hiccup_at: Option<Instant>,
    hiccups: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Notice {
    Away,
    StillAway { failures: u64, lasted: Duration },
    Back { failures: u64, lasted: Duration },
    Hiccup { failures: u64 },
}

impl Outage {
    /// Takes a failure.
    pub(super) fn failed(&self, reach: FailureReach, why: &StoreError) {
        let line =
            self.tale.lock().failed(reach, Instant::now(), || self.is_on.store(true, Ordering::Release));
        match line {
            Some(Notice::Away) => tracing::warn!(%why, remedy = why.remedy(), "Postgres is away"),
            Some(Notice::Hiccup { failures }) => {
                tracing::warn!(%why, failures, remedy = why.remedy(), "Postgres did not carry out a statement");
            }
            Some(line) => line.tell(),
            None => tracing::debug!(%why, "Postgres is away"),
        }
    }

    /// Takes an answer. `is_whole`: nothing else is known to fail.
    pub(super) fn answered(&self, is_whole: bool) {
        if !self.is_on.load(Ordering::Acquire) {
            return;
        }
        let line = self
            .tale
            .lock()
            .answered(is_whole, Instant::now(), || self.is_on.store(false, Ordering::Release));
        if let Some(line) = line {
            line.tell();
        }
    }
}

impl Notice {
    fn tell(&self) {
        match self {
            Notice::StillAway { failures, lasted } => {
                tracing::warn!(failures, "Postgres is still away, for {:.0} s now", lasted.as_secs_f64());
            }
            Notice::Back { failures, lasted } => {
                let decimals = usize::from(*lasted < Duration::from_secs(10));
                tracing::info!(failures, "Postgres is back after {:.decimals$} s", lasted.as_secs_f64());
            }
            Notice::Away | Notice::Hiccup { .. } => {}
        }
    }
}

impl Tale {
    fn failed(&mut self, reach: FailureReach, now: Instant, begin: impl FnOnce()) -> Option<Notice> {
        match (self.away, reach) {
            (Some((since, _)), _) => {
                (self.away, self.answered_at) = (Some((since, now)), None);
                self.untold += 1;
                self.all += 1;
                self.minute(now, since)
            }
            (None, FailureReach::Connection) => {
                begin();
                (self.away, self.answered_at, self.told_at) = (Some((now, now)), None, Some(now));
                (self.untold, self.all) = (0, 1);
                Some(Notice::Away)
            }
            (None, FailureReach::Statement) => {
                self.hiccups += 1;
                if self.hiccup_at.is_some_and(|at| now - at < HICCUPS_EVERY) {
                    return None;
                }
                self.hiccup_at = Some(now);
                Some(Notice::Hiccup { failures: std::mem::take(&mut self.hiccups) })
            }
        }
    }

    fn answered(&mut self, is_whole: bool, now: Instant, end: impl FnOnce()) -> Option<Notice> {
        let (since, last) = self.away?;
        let answered_at = *self.answered_at.get_or_insert(now);
        if !is_whole || now - last < QUIET_MIN {
            return self.minute(now, since);
        }
        end();
        self.away = None;
        Some(Notice::Back { failures: self.all, lasted: answered_at - since })
    }

    fn minute(&mut self, now: Instant, since: Instant) -> Option<Notice> {
        if self.told_at.is_some_and(|at| now - at < TOLD_EVERY) {
            return None;
        }
        self.told_at = Some(now);
        Some(Notice::StillAway { failures: std::mem::take(&mut self.untold), lasted: now - since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_one_line_then_one_a_minute_then_one() {
        let (mut tale, began) = (Tale::default(), Instant::now());
        let mut lines = Vec::new();
        // Ten failures a second for 150 s, and answers to some statements.
        for n in 0..1500_u32 {
            let now = began + Duration::from_millis(100) * n;
            lines.extend(tale.failed(FailureReach::Connection, now, || {}));
            lines.extend(tale.failed(FailureReach::Statement, now, || {}));
            lines.extend(tale.answered(true, now + Duration::from_millis(50), || {}));
        }
        let end = began + Duration::from_millis(149_900);
        lines.extend(tale.answered(false, end + Duration::from_secs(2), || {}));
        lines.extend(tale.answered(true, end + Duration::from_secs(2), || {}));
        lines.extend(tale.answered(true, end + Duration::from_secs(3), || {}));
        let s = Duration::from_secs;
        let wanted = [
            Notice::Away,
            Notice::StillAway { failures: 1200, lasted: s(60) },
            Notice::StillAway { failures: 1200, lasted: s(120) },
            Notice::Back { failures: 3000, lasted: Duration::from_millis(149_950) },
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn statements_that_fail_beside_a_postgres_that_answers_are_told_now_and_then() {
        let (mut tale, began) = (Tale::default(), Instant::now());
        let at = |tenths: u32| began + Duration::from_millis(100) * tenths;
        let told = (0..300).filter_map(|n| tale.failed(FailureReach::Statement, at(n), || {}));
        let told: Vec<Notice> = told.collect();
        let wanted = [1, 100, 100].map(|failures| Notice::Hiccup { failures });
        assert_eq!(told, wanted);
    }
}
