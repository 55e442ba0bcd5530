//! The one clock: the database's time, as this process knows it.
//!
//! Owns the offset between this machine's clock and the database's, and the minting of ids. No other file may call
//! `Utc::now` or make a UUIDv7: an id's time decides the partition of its events, so a replica whose clock is an hour
//! off must not mint ids an hour off. Deadlines are not judged here; the database judges them.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use nix::time::{ClockId, clock_gettime};
use uuid::{ContextV7, Timestamp, Uuid};

/// The database's clock, computed from the local clock and a measured offset.
#[derive(Debug, Default)]
pub struct Clock {
    /// Database time minus local time, in microseconds.
    offset_us: AtomicI64,
    ids: parking_lot::Mutex<ContextV7>,
}

impl Clock {
    /// The database's time now, by the offset of the last [`Clock::set_database_time`].
    pub fn now(&self) -> DateTime<Utc> {
        let offset = TimeDelta::microseconds(self.offset_us.load(Ordering::Relaxed));
        local_now() + offset
    }

    /// Sets the offset from a reading of the database's clock taken just now.
    pub fn set_database_time(&self, database: DateTime<Utc>) {
        let offset = (database - local_now()).num_microseconds().unwrap_or(0);
        self.offset_us.store(offset, Ordering::Relaxed);
    }

    /// Database time minus local time, in seconds.
    pub fn offset_seconds(&self) -> f64 {
        self.offset_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// A new UUIDv7 with the database's time. Ids that this process mints later sort after it.
    pub fn mint(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
        let context = self.ids.lock();
        Uuid::new_v7(Timestamp::from_unix(&*context, seconds, now.timestamp_subsec_nanos()))
    }
}

/// Monotonic time in nanoseconds, shared by all processes of this machine: one process can subtract a value that
/// another has noted. Measures durations across two processes; unrelated to the time of day.
pub fn steady_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let nanos = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    u64::try_from(nanos).unwrap_or(0)
}

#[allow(clippy::disallowed_methods, reason = "this is the clock's home")]
fn local_now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_the_databases_time_and_sort_by_it() {
        let clock = Clock::default();
        clock.set_database_time(clock.now() + TimeDelta::hours(1));
        let (first, second) = (clock.mint(), clock.mint());
        assert!(first < second);
        let (seconds, _) = first.get_timestamp().map(|t| t.to_unix()).unwrap_or_default();
        assert!((seconds as i64 - local_now().timestamp() - 3600).abs() < 5);
    }
}
