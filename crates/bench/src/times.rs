//! Durations: a histogram that keeps its tail, and a timetable for requests.
//!
//! Owns the correction for coordinated omission. A client that is held up sends its next request late; timed from the
//! sending, the wait would vanish. So each request has a time at which it was due, and if the previous request had not
//! ended by then the request is timed from its due time.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep_until};

use lastword::clock::steady_ns;

/// Three digits, from a microsecond to ten minutes.
const LONGEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// Lengths of time.
#[derive(Debug, Clone)]
pub struct Durations(Histogram<u64>);

impl Durations {
    /// None yet.
    pub fn new() -> anyhow::Result<Durations> {
        Ok(Durations(Histogram::new_with_bounds(1, LONGEST_US, DIGITS)?))
    }

    /// Notes one, in nanoseconds; what is longer than ten minutes counts as ten.
    pub fn record_ns(&mut self, nanos: u64) {
        self.0.saturating_record((nanos / 1000).max(1));
    }

    /// Takes in another's.
    pub fn add(&mut self, other: &Durations) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// What this share of all is not above, in milliseconds; `None` where there are none.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        (self.count() > 0).then(|| self.0.value_at_quantile(share) as f64 / 1000.0)
    }

    /// The longest, in milliseconds.
    pub fn max_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.0.max() as f64 / 1000.0)
    }
}

/// Moments at a fixed distance, and who is late for them.
#[derive(Debug)]
pub struct Timetable {
    every: Duration,
    began: Instant,
    began_ns: u64,
    next: u32,
    /// When the one before was done.
    done_ns: u64,
}

impl Timetable {
    /// The first moment is now.
    pub fn every(every: Duration) -> Timetable {
        Timetable { every, began: Instant::now(), began_ns: steady_ns(), next: 0, done_ns: 0 }
    }

    /// Waits for the next moment, and says from when what is done then is to be timed, on the steady
    /// clock.
    pub async fn next(&mut self) -> u64 {
        let since = self.every * self.next;
        self.next += 1;
        sleep_until(self.began + since).await;
        let due_ns = self.began_ns + u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        timed_from(due_ns, self.done_ns, steady_ns())
    }

    /// What was asked for at the last moment has been answered.
    pub fn done(&mut self) {
        self.done_ns = steady_ns();
    }
}

/// From when a request is timed that was due at `due`, began at `now`, and came after one that ended at
/// `before`: from its due moment where the other held it up; from its beginning where only this
/// program's own timer was late.
fn timed_from(due: u64, before: u64, now: u64) -> u64 {
    if before > due { due } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A server that takes 1 ms, but once, at the hundredth of a thousand requests, a whole second.
    /// One client, 5 ms from request to request. Timed with the correction, and without.
    fn stalled() -> (Durations, Durations) {
        let (mut corrected, mut naive) = (Durations::new().unwrap(), Durations::new().unwrap());
        let mut done = 0;
        for n in 0..1000_u64 {
            let due = n * 5 * MS;
            let began = due.max(done);
            let from = timed_from(due, done, began);
            done = began + if n == 100 { 1000 * MS } else { MS };
            corrected.record_ns(done - from);
            naive.record_ns(done - began);
        }
        (corrected, naive)
    }

    #[test]
    fn a_stall_counts_for_every_request_that_was_due_meanwhile() {
        let (corrected, naive) = stalled();
        assert!(naive.quantile_ms(0.99).unwrap() < 1.1, "one of a thousand is all that a waiting client saw");
        // Behind the stall 249 more were late, by less and less: the last of them by 4 ms.
        let late = corrected.quantile_ms(0.80).unwrap();
        assert!(late > 100.0, "p80 is {late} ms");
        assert!(corrected.quantile_ms(0.99).unwrap() > 900.0);
        assert!(corrected.quantile_ms(0.5).unwrap() < 1.1, "the others were not");
    }

    #[test]
    fn a_late_timer_of_our_own_is_nobodys_latency() {
        assert_eq!(timed_from(10, 9, 12), 12);
        assert_eq!(timed_from(10, 11, 12), 10);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut times = Durations::new().unwrap();
        assert_eq!((times.quantile_ms(0.5), times.max_ms()), (None, None), "nothing is not zero");
        for ms in 1..=100 {
            times.record_ns(ms * MS);
        }
        let near = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < wanted / 500.0;
        assert!(near(times.quantile_ms(0.5), 50.0) && near(times.quantile_ms(0.99), 99.0));
        assert!(near(times.max_ms(), 100.0));
        let mut twice = times.clone();
        twice.add(&times).unwrap();
        assert_eq!(twice.count(), 200);
        times.record_ns(3_600_000 * MS);
        assert!(near(times.max_ms(), 600_000.0), "too long to be counted exactly, and still the longest");
    }
}
