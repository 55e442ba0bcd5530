//! Guesses: requests with unknown tokens, counted by address, and refused more and more slowly.
//!
//! Owns a table of addresses, and its limits. A valid token is accepted before this table is consulted, even from a
//! guessing address, because callers behind one proxy share an address. Only refusals are delayed: a client that
//! guesses tokens one after the other learns little, and a client that guesses in parallel is told to come back
//! later. Logs at most one line a minute, and never a token.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::{
    api::problem::Problem,
    task::{Supervisor, TaskKind},
    telemetry::metrics,
};

/// Refusals per address and [`WINDOW`] without a delay.
const AT_ONCE_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// The first delay, and the longest. The delay doubles with each refusal.
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(3);
/// Delayed refusals at a time, in all and per address.
const DELAYED_MAX: usize = 256;
const DELAYED_PER_ADDRESS_MAX: u32 = 16;
/// Addresses in the table.
const ADDRESSES_MAX: usize = 1024;

/// The table of refusals.
#[derive(Debug, Default)]
pub struct Guesses(Arc<Mutex<GuessTable>>);

#[derive(Debug, Default)]
struct GuessTable {
    addresses: HashMap<IpAddr, Guesser>,
    delayed: usize,
    /// Refusals since the last log line; `None`: there are none, and no task is waiting to log.
    untold: Option<u64>,
}

#[derive(Debug)]
struct Guesser {
    /// Refusals since `since`; reset after [`WINDOW`].
    failures: u32,
    since: Instant,
    /// Delayed refusals at the moment.
    delayed: u32,
    /// Refusals since the last log line.
    untold: u64,
}

/// How a refusal is answered.
#[derive(Debug, PartialEq, Eq)]
enum RefusalForm {
    After(Duration),
    /// The limit of delayed refusals is reached.
    TooMany,
}

impl Guesses {
    /// Refuses a request with an unknown token.
    pub async fn refuse(&self, supervisor: &Supervisor, from: IpAddr) -> Problem {
        metrics::auth_failures();
        let from = network(from);
        let refusal = {
            let mut state = self.state();
            match &mut state.untold {
                Some(untold) => *untold += 1,
                None => {
                    state.untold = Some(1);
                    supervisor.spawn(TaskKind::Client, "guesses", tell(self.0.clone(), supervisor.clone()));
                }
            }
            state.note(from, Instant::now())
        };
        match refusal {
            RefusalForm::TooMany => return Problem::too_many_failures(DELAY_MAX.as_secs()),
            RefusalForm::After(Duration::ZERO) => {}
            RefusalForm::After(delay) => {
                let _delayed = Delayed { state: self.0.clone(), from };
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = supervisor.soft().cancelled() => {}
                }
            }
        }
        Problem::unauthorized()
    }

    fn state(&self) -> MutexGuard<'_, GuessTable> {
        lock(&self.0)
    }
}

impl GuessTable {
    fn note(&mut self, from: IpAddr, now: Instant) -> RefusalForm {
        if !self.addresses.contains_key(&from) {
            self.make_room(now);
        }
        let new = || Guesser { failures: 0, since: now, delayed: 0, untold: 0 };
        let guesser = self.addresses.entry(from).or_insert_with(new);
        if now >= guesser.since + WINDOW {
            (guesser.failures, guesser.since) = (0, now);
        }
        guesser.failures = guesser.failures.saturating_add(1);
        guesser.untold += 1;
        let Some(beyond) = guesser.failures.checked_sub(AT_ONCE_MAX + 1) else {
            return RefusalForm::After(Duration::ZERO);
        };
        if guesser.delayed >= DELAYED_PER_ADDRESS_MAX || self.delayed >= DELAYED_MAX {
            return RefusalForm::TooMany;
        }
        guesser.delayed += 1;
        self.delayed += 1;
        RefusalForm::After((DELAY_FIRST * 2_u32.pow(beyond.min(10))).min(DELAY_MAX))
    }

    /// Removes addresses that have stopped guessing, or else the one with the fewest failures, so the worst guessers
    /// stay.
    fn make_room(&mut self, now: Instant) {
        if self.addresses.len() < ADDRESSES_MAX {
            return;
        }
        self.addresses.retain(|_, guesser| guesser.delayed > 0 || now < guesser.since + WINDOW);
        if self.addresses.len() >= ADDRESSES_MAX {
            let least = self.addresses.iter().min_by_key(|(_, guesser)| (guesser.delayed, guesser.failures));
            if let Some(least) = least.map(|(&from, _)| from) {
                self.addresses.remove(&least);
            }
        }
    }
}

/// A delayed refusal.
struct Delayed {
    state: Arc<Mutex<GuessTable>>,
    from: IpAddr,
}

impl Drop for Delayed {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.delayed = state.delayed.saturating_sub(1);
        if let Some(guesser) = state.addresses.get_mut(&self.from) {
            guesser.delayed = guesser.delayed.saturating_sub(1);
        }
    }
}

/// Waits for [`WINDOW`], then logs one line about the refusals in that time.
async fn tell(state: Arc<Mutex<GuessTable>>, supervisor: Supervisor) {
    tokio::select! {
        () = tokio::time::sleep(WINDOW) => {}
        () = supervisor.soft().cancelled() => {}
    }
    let mut state = lock(&state);
    let failures = state.untold.take().unwrap_or_default();
    let most = state.addresses.iter().max_by_key(|(_, guesser)| guesser.untold);
    let (from, of_them) = most.map_or((None, 0), |(from, guesser)| (Some(*from), guesser.untold));
    state.addresses.values_mut().for_each(|guesser| guesser.untold = 0);
    let from = from.map(|from| from.to_string()).unwrap_or_default();
    tracing::warn!(
        failures,
        from,
        of_them,
        "requests with unknown tokens were refused; `of_them` came from the address `from`"
    );
}

/// The part of an address that belongs to one party: the first 64 bits of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

fn lock(state: &Mutex<GuessTable>) -> MutexGuard<'_, GuessTable> {
    state.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn who_fails_often_is_refused_later_each_time() {
        let (mut state, now) = (GuessTable::default(), Instant::now());
        let mut note = |at| match state.note(address(1), at) {
            RefusalForm::After(delay) => {
                state.delayed = 0;
                state.addresses.get_mut(&address(1)).unwrap().delayed = 0;
                delay.as_millis()
            }
            RefusalForm::TooMany => panic!("nobody else is refused"),
        };
        for _ in 0..AT_ONCE_MAX {
            assert_eq!(note(now), 0);
        }
        assert_eq!([note(now), note(now), note(now)], [100, 200, 400]);
        for _ in 0..40 {
            note(now);
        }
        assert_eq!(note(now), DELAY_MAX.as_millis());
        assert_eq!(note(now + WINDOW), 0, "a minute later");
        assert_eq!(state.note(address(2), now), RefusalForm::After(Duration::ZERO), "another address");
    }

    #[test]
    fn refusals_under_way_are_bounded_for_each_address_and_in_all() {
        let (mut state, now) = (GuessTable::default(), Instant::now());
        let mut delayed = |from| {
            let all = (0..100).map(|_| state.note(address(from), now));
            all.filter(|refusal| {
                !matches!(refusal, RefusalForm::After(Duration::ZERO) | RefusalForm::TooMany)
            })
            .count()
        };
        assert_eq!(delayed(0), DELAYED_PER_ADDRESS_MAX as usize);
        let others: usize = (1..100).map(delayed).sum();
        assert_eq!(others, DELAYED_MAX - DELAYED_PER_ADDRESS_MAX as usize);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_who_guess_most() {
        let (mut state, now) = (GuessTable::default(), Instant::now());
        for _ in 0..5 {
            state.note(address(0), now);
        }
        for n in 1..5000 {
            state.note(address(n), now);
            assert!(state.addresses.len() <= ADDRESSES_MAX);
        }
        assert_eq!(state.addresses[&address(0)].failures, 5);
        state.note(address(9999), now + WINDOW);
        assert_eq!(state.addresses.len(), 1, "the others have stopped");
    }

    #[test]
    fn a_party_has_one_address_of_ipv4_and_half_of_ipv6() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("203.0.113.9"), "203.0.113.9");
        assert_eq!(network("::ffff:203.0.113.9"), "203.0.113.9");
    }
}
