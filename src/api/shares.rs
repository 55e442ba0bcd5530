//! Shares: how much of a common limit one client token may use on this replica, and how many rows a minute it may create.
//!
//! Owns the counts by principal ([`Principal`]); there is one principal per configured token, so the counts cannot
//! grow. A token's share is a percentage of the limit; the rest stays free for other tokens and for operators, who
//! have no share. Refuses before the work is done, but for a page of answers, whose size is known only then. Counts are local to the replica and need no query,
//! except the queue's share, which all replicas have in common ([`queue`]).

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

/// Burst allowance of a token: the rows of this much time.
const ROWS_AHEAD: Duration = Duration::from_secs(10);
/// Burst allowance of a token, in rows, at least.
const ROWS_AHEAD_MIN: u32 = 10;
/// Pages of events that are read and rendered concurrently.
const RENDERED_AT_ONCE: usize = 8;

/// The shares of one replica.
#[derive(Debug)]
pub struct Shares {
    /// Event streams.
    pub streams: Arc<Bound>,
    /// Waiting requests.
    pub waits: Arc<Bound>,
    /// Bytes of responses that clients have not read.
    unread: Arc<Bound>,
    /// Pages being rendered.
    rendering: Arc<Semaphore>,
    rows: Rows,
    queue: queue::QueueShares,
}

impl Shares {
    /// The shares of a configuration.
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

    /// Reserves a slot in the queue for a turn that is about to be accepted.
    pub async fn queue(&self, store: &Store, who: Who, new: &mut NewTurn) -> Result<QueueRoom, Problem> {
        let room = self.queue.room(store, who).await?;
        if matches!(room, QueueRoom::None) {
            if new.idempotency.is_none() {
                return Err(queue::full());
            }
            // The request may repeat an accepted turn. With a limit of 0, the database still finds that turn, and
            // refuses a new turn that would wait.
            new.queue_max = 0;
        }
        Ok(room)
    }

    /// Reserves a stream.
    pub fn stream(&self, who: Who) -> Result<Taken, Problem> {
        self.streams.take(who, 1).map_err(|full| full.problem(Problem::too_many_streams))
    }

    /// Reserves a wait; `None` if the request does not wait.
    pub fn wait(&self, who: Who, wait: Duration) -> Result<Option<Taken>, Problem> {
        if wait.is_zero() {
            return Ok(None);
        }
        self.waits.take(who, 1).map(Some).map_err(|full| full.problem(Problem::too_many_waits))
    }

    /// A permit to gather and render a page, if the token may have one more. Must not be held while waiting.
    pub async fn rendering(&self, who: Who) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        self.unread.has_room(who).map_err(|full| full.problem(Problem::too_much_unread))?;
        Ok(self.rendering.clone().acquire_owned().await.ok())
    }

    /// Counts a rendered page until it is read. A page larger than the share is allowed if the token has no other.
    pub fn page(&self, who: Who, size: u64) -> Result<Taken, Problem> {
        let taken = self.unread.take(who, size);
        taken
            .or_else(
                |full| if self.unread.has_none(who) { Ok(self.unread.add(who, size)) } else { Err(full) },
            )
            .map_err(|full| full.problem(Problem::too_much_unread))
    }

    /// Counts a response that must be sent, until it is read.
    pub fn answer(&self, who: Who, size: u64) -> Taken {
        self.unread.add(who, size)
    }

    /// Counts new rows: turns and conversations.
    pub fn rows(&self, who: Who, count: u32) -> Result<(), Problem> {
        self.rows.take(who, count, self.rows.began.elapsed()).map_err(|wait| {
            Problem::share_exceeded("rows", wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
        })
    }
}

/// Which limit is reached.
#[derive(Debug, PartialEq, Eq)]
pub enum Full {
    /// The limit of all tokens together.
    All,
    /// The share of this token.
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

/// A limit, and its use in all and by each principal.
#[derive(Debug)]
pub struct Bound {
    name: &'static str,
    max: u64,
    share: u64,
    taken: AtomicU64,
    /// Indexed by [`place_of`].
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

    /// Reserves `count` until the result is dropped.
    pub fn take(self: &Arc<Self>, who: Who, count: u64) -> Result<Taken, Full> {
        let place = place_of(who, self.by.len());
        let within = |most: u64| move |taken: u64| taken.checked_add(count).filter(|taken| *taken <= most);
        let add = |to: &AtomicU64, most| to.fetch_update(Ordering::AcqRel, Ordering::Acquire, within(most));
        // The share comes first: a count refused by the share must not appear in the total, not even for a moment.
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

    /// Reserves `count`, even beyond the limit.
    fn add(self: &Arc<Self>, who: Who, count: u64) -> Taken {
        let place = place_of(who, self.by.len());
        self.taken.fetch_add(count, Ordering::AcqRel);
        if let Some(by) = self.by.get(place) {
            by.fetch_add(count, Ordering::AcqRel);
        }
        self.tell();
        Taken { bound: self.clone(), place, count }
    }

    /// Whether anything is left, in all and of the share.
    fn has_room(&self, who: Who) -> Result<(), Full> {
        match () {
            () if self.taken.load(Ordering::Acquire) >= self.max => Err(Full::All),
            () if self.taken_by(who) >= self.share_of(who) => Err(Full::Share(self.name)),
            () => Ok(()),
        }
    }

    /// Whether the caller has reserved nothing.
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

/// A reservation, released on drop.
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

/// The index of a principal's count: anonymous callers first, then the client tokens, operators last.
fn place_of(Who(principal): Who, count: usize) -> usize {
    usize::from(principal.number()).min(count.saturating_sub(1))
}

/// A token bucket per client token: rows per minute.
#[derive(Debug)]
struct Rows {
    began: Instant,
    /// The time that one row costs, in nanoseconds.
    cost: u64,
    /// The burst allowance, in nanoseconds.
    ahead: u64,
    /// The time up to which each token has used its rows, in nanoseconds since `began`.
    at: Box<[AtomicU64]>,
}

impl Rows {
    fn new(per_minute: u32, tokens: usize) -> Rows {
        let cost = 60_000_000_000 / u64::from(per_minute.max(1));
        let ahead = nanos(ROWS_AHEAD).max(cost * u64::from(ROWS_AHEAD_MIN));
        Rows { began: Instant::now(), cost, ahead, at: (0..tokens + 1).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Takes `count` rows at the time `now` after `began`. The error is the time to wait.
    fn take(&self, who: Who, count: u32, now: Duration) -> Result<(), Duration> {
        // Operators have no bucket.
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
