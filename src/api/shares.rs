//! Shares: how much of what all clients share one client's token may take on this replica.
//!
//! Owns the counts by principal ([`Principal`]), one for each configured token, so that they cannot grow. One token
//! takes a part of a bound, in percent; what is left stays free for the other tokens and for operators, whom no
//! share bounds. Refuses before anything is done for the request. A share is one replica's: none costs a
//! statement but for the queue's, which is one for all replicas ([`queue`]).

mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{problem::Problem, who::Who};
use crate::{
    config::Config,
    principal::Principal,
    store::{Store, accept::NewTurn},
    telemetry::metrics,
};

use queue::QueueRoom;

/// A token that made nothing for so long may make as many rows at once as in this time.
const ROWS_AHEAD: Duration = Duration::from_secs(10);
/// And at least so many.
const ROWS_AHEAD_MIN: u32 = 10;
/// Pages of events that are read and rendered at a time.
const RENDERED_AT_ONCE: usize = 8;

/// The shares of one replica.
#[derive(Debug)]
pub struct Shares {
    /// Event streams.
    pub streams: Arc<Bound>,
    /// Requests that wait.
    pub waits: Arc<Bound>,
    /// Bytes of answers that their clients have not read.
    unread: Arc<Bound>,
    /// Pages that are being rendered.
    rendering: Arc<Semaphore>,
    rows: Rows,
    queue: queue::QueueShares,
}

impl Shares {
    /// The shares that a configuration gives.
    pub fn of(config: &Config) -> Shares {
        let bound = |name, max| Arc::new(Bound::new(name, max, config));
        Shares {
            streams: bound("streams", u64::from(config.streams_max)),
            waits: bound("waits", u64::from(config.waits_max)),
            unread: bound("unread_bytes", config.unread_max.0),
            rendering: Arc::new(Semaphore::new(RENDERED_AT_ONCE)),
            rows: Rows::new(config.token_rows_per_minute_max, config.client_tokens.len()),
            queue: queue::QueueShares::of(config),
        }
    }

    /// Room in the queue for a turn that is about to be accepted.
    pub async fn queue(&self, store: &Store, who: Who, new: &mut NewTurn) -> Result<QueueRoom, Problem> {
        let room = self.queue.room(store, who).await?;
        if matches!(room, QueueRoom::None) {
            if new.idempotency.is_none() {
                return Err(queue::full());
            }
            // It may repeat one that was accepted: the database tells that from one more that would wait.
            new.queue_max = 0;
        }
        Ok(room)
    }

    /// Takes a place for a stream.
    pub fn stream(&self, who: Who) -> Result<Taken, Problem> {
        self.streams.take(who, 1).map_err(|full| full.problem(Problem::too_many_streams))
    }

    /// Takes a place for a request that waits, where it does.
    pub fn wait(&self, who: Who, wait: Duration) -> Result<Option<Taken>, Problem> {
        if wait.is_zero() {
            return Ok(None);
        }
        self.waits.take(who, 1).map(Some).map_err(|full| full.problem(Problem::too_many_waits))
    }

    /// A place for a page that is gathered and rendered, where its token may have one more. Never hold it while
    /// waiting for somebody.
    pub async fn rendering(&self, who: Who) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        self.unread.has_room(who).map_err(|full| full.problem(Problem::too_much_unread))?;
        Ok(self.rendering.clone().acquire_owned().await.ok())
    }

    /// A page that was rendered, until it is read. One that is larger than a share is served alone.
    pub fn page(&self, who: Who, size: u64) -> Result<Taken, Problem> {
        let taken = self.unread.take(who, size);
        taken
            .or_else(
                |full| if self.unread.has_none(who) { Ok(self.unread.add(who, size)) } else { Err(full) },
            )
            .map_err(|full| full.problem(Problem::too_much_unread))
    }

    /// An answer that must be given, until it is read.
    pub fn answer(&self, who: Who, size: u64) -> Taken {
        self.unread.add(who, size)
    }

    /// Counts rows that are about to be made: turns and conversations.
    pub fn rows(&self, who: Who, count: u32) -> Result<(), Problem> {
        self.rows.take(who, count, self.rows.began.elapsed()).map_err(|wait| {
            Problem::share_exceeded("rows", wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
        })
    }
}

/// Why nothing can be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Full {
    /// Everybody together has as much as there is.
    All,
    /// The token has its share of it.
    Share(&'static str),
}

impl Full {
    fn problem(self, all: impl FnOnce() -> Problem) -> Problem {
        match self {
            Full::All => all(),
            Full::Share(share) => Problem::share_exceeded(share, 2),
        }
    }
}

/// What a replica has so much of, and who has taken how much.
#[derive(Debug)]
pub struct Bound {
    name: &'static str,
    max: u64,
    share: u64,
    taken: AtomicU64,
    /// By [`place_of`].
    by: Box<[AtomicU64]>,
}

impl Bound {
    fn new(name: &'static str, max: u64, config: &Config) -> Bound {
        let share = (max * u64::from(config.token_share)).div_ceil(100);
        let by = (0..config.client_tokens.len() + 2).map(|_| AtomicU64::new(0)).collect();
        let bound = Bound { name, max, share, taken: AtomicU64::new(0), by };
        bound.tell();
        bound
    }

    /// Takes so much of it, until what this returns is dropped.
    pub fn take(self: &Arc<Self>, who: Who, count: u64) -> Result<Taken, Full> {
        let place = place_of(who, self.by.len());
        let within = |most: u64| move |taken: u64| taken.checked_add(count).filter(|taken| *taken <= most);
        let add = |to: &AtomicU64, most| to.fetch_update(Ordering::AcqRel, Ordering::Acquire, within(most));
        // The share comes first: what a token is refused must not count, even for a moment, as taken from all.
        let (by, share) = (self.by.get(place), self.share_of(who));
        if let Some(by) = by {
            let full = if share < self.max { Full::Share(self.name) } else { Full::All };
            add(by, share).map_err(|_| full)?;
        }
        if add(&self.taken, self.max).is_err() {
            if let Some(by) = by {
                by.fetch_sub(count, Ordering::AcqRel);
            }
            return Err(Full::All);
        }
        self.tell();
        Ok(Taken { bound: self.clone(), place, count })
    }

    /// Takes so much of it, however much there is.
    fn add(self: &Arc<Self>, who: Who, count: u64) -> Taken {
        let place = place_of(who, self.by.len());
        self.taken.fetch_add(count, Ordering::AcqRel);
        if let Some(by) = self.by.get(place) {
            by.fetch_add(count, Ordering::AcqRel);
        }
        self.tell();
        Taken { bound: self.clone(), place, count }
    }

    /// Whether anything more could be taken.
    fn has_room(&self, who: Who) -> Result<(), Full> {
        match () {
            () if self.taken.load(Ordering::Acquire) >= self.max => Err(Full::All),
            () if self.taken_by(who) >= self.share_of(who) => Err(Full::Share(self.name)),
            () => Ok(()),
        }
    }

    /// Whether nothing is taken by this one.
    fn has_none(&self, who: Who) -> bool {
        self.taken_by(who) == 0
    }

    fn taken_by(&self, who: Who) -> u64 {
        self.by.get(place_of(who, self.by.len())).map_or(0, |by| by.load(Ordering::Acquire))
    }

    fn share_of(&self, Who(principal): Who) -> u64 {
        if principal == Principal::OPERATOR { self.max } else { self.share }
    }

    fn tell(&self) {
        metrics::bound(self.name, self.taken.load(Ordering::Acquire), self.max);
    }
}

/// Something taken, until it is dropped.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub struct Taken {
    bound: Arc<Bound>,
    place: usize,
    count: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.bound.taken.fetch_sub(self.count, Ordering::AcqRel);
        if let Some(by) = self.bound.by.get(self.place) {
            by.fetch_sub(self.count, Ordering::AcqRel);
        }
        self.bound.tell();
    }
}

/// Where a principal's count stands among so many: everybody without a token, the client tokens, operators.
fn place_of(Who(principal): Who, count: usize) -> usize {
    usize::from(principal.number()).min(count.saturating_sub(1))
}

/// How many rows each token makes in a minute.
#[derive(Debug)]
struct Rows {
    began: Instant,
    /// What one row costs of a token's time, in nanoseconds.
    cost: u64,
    /// How far ahead of the clock a token may be.
    ahead: u64,
    /// How far each token is, in nanoseconds since the beginning.
    at: Box<[AtomicU64]>,
}

impl Rows {
    fn new(per_minute: u32, tokens: usize) -> Rows {
        let cost = 60_000_000_000 / u64::from(per_minute.max(1));
        let ahead = nanos(ROWS_AHEAD).max(cost * u64::from(ROWS_AHEAD_MIN));
        Rows { began: Instant::now(), cost, ahead, at: (0..tokens + 1).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Takes so many rows, `now` after the beginning; else how long to wait for them.
    fn take(&self, who: Who, count: u32, now: Duration) -> Result<(), Duration> {
        // Operators have no place here.
        let Some(at) = self.at.get(usize::from(who.0.number())) else { return Ok(()) };
        let now = nanos(now);
        let after = |at: u64| at.max(now).saturating_add(self.cost * u64::from(count));
        let until = now.saturating_add(self.ahead);
        let within = |at| Some(after(at)).filter(|after| *after <= until);
        let taken = at.fetch_update(Ordering::AcqRel, Ordering::Acquire, within);
        taken.map(drop).map_err(|at| Duration::from_nanos(after(at).saturating_sub(until)))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Who = Who(Principal::ANONYMOUS);
    const OPERATOR: Who = Who(Principal::OPERATOR);

    fn other() -> Who {
        Who(Principal::client(0))
    }

    fn bound(max: u64) -> Arc<Bound> {
        let config = Config { client_tokens: vec!["a".to_owned()], ..Config::default() };
        Arc::new(Bound::new("streams", max, &config))
    }

    #[test]
    fn one_takes_its_share_and_what_is_left_is_for_others() {
        let bound = bound(10);
        let mut taken: Vec<_> = (0..8).map(|_| bound.take(ONE, 1).unwrap()).collect();
        assert_eq!(bound.take(ONE, 1).unwrap_err(), Full::Share("streams"));
        let others = bound.take(other(), 1).unwrap();
        let operators = bound.take(OPERATOR, 1).unwrap();
        assert_eq!(bound.take(other(), 1).unwrap_err(), Full::All);
        assert_eq!(bound.take(OPERATOR, 1).unwrap_err(), Full::All);
        taken.pop();
        drop((others, operators));
        let all = bound.take(ONE, 1).unwrap();
        drop((all, taken));
        drop(bound.take(OPERATOR, 10).unwrap());
        assert_eq!(bound.take(ONE, 9).unwrap_err(), Full::Share("streams"));
        drop(bound.take(ONE, 8).unwrap());
    }

    #[test]
    fn what_one_is_refused_takes_no_room_from_others() {
        let bound = bound(10);
        let _full = bound.take(ONE, 8).unwrap();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    (0..20_000)
                        .for_each(|_| assert_eq!(bound.take(ONE, 1).unwrap_err(), Full::Share("streams")));
                });
            }
            (0..20_000).for_each(|_| drop(bound.take(other(), 2).expect("two are left for others")));
        });
    }

    #[test]
    fn a_bound_of_one_is_everybodys() {
        let bound = bound(1);
        let _taken = bound.take(ONE, 1).unwrap();
        assert_eq!(bound.take(other(), 1).unwrap_err(), Full::All);
    }

    #[test]
    fn rows_are_made_as_fast_as_they_may_be() {
        let rows = Rows::new(60, 1);
        let at = Duration::from_secs;
        assert!((0..10).all(|_| rows.take(ONE, 1, at(0)).is_ok()), "ten seconds of them at once");
        assert_eq!(rows.take(ONE, 2, at(0)), Err(at(2)));
        assert_eq!(rows.take(ONE, 2, at(2)), Ok(()));
        assert_eq!(rows.take(ONE, 1, at(2)), Err(at(1)));
        assert_eq!(rows.take(other(), 1, at(2)), Ok(()));
        assert!((0..100).all(|_| rows.take(OPERATOR, 9, at(2)).is_ok()));
        let few = Rows::new(1, 0);
        assert!((0..10).all(|_| few.take(ONE, 1, at(0)).is_ok()) && few.take(ONE, 1, at(0)).is_err());
    }
}
