//! Places: how many turns this replica runs at once.
//!
//! Owns the count, and whether a turn may wait for a place, so that the queue is looked at when one is free
//! and not after each turn. Owns also how many of them the turns of one client token have: where there are several
//! tokens, one token's turns leave some of the places to others, however many of them wait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::host::Host;
use crate::{config::Config, id::TurnId, principal::Principal};

/// What the turns of one token may have.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// With so many the token's turns are passed over.
    usual: usize,
    /// What is claimed at once may be a few more: never all that others were left.
    most: usize,
}

impl Share {
    fn of(places: usize, usual: usize) -> Share {
        Share { usual, most: usual + places.saturating_sub(usual) / 2 }
    }
}

/// Why a turn takes a part of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It is to be claimed.
    Wanted,
    /// It was claimed just now.
    Claimed,
    /// It is held, by whomever.
    Held,
}

/// The places of one replica.
#[derive(Debug)]
pub(super) struct Places {
    count: u32,
    free: Arc<Semaphore>,
    is_wanting: AtomicBool,
    /// How many the turns of one token may have; `None`: all.
    share: Option<Share>,
    taken: Mutex<HashMap<Principal, usize>>,
}

impl Places {
    pub(super) fn new(config: &Config) -> Self {
        let count = config.turns_max;
        Places {
            count,
            free: Arc::new(Semaphore::new(count as usize)),
            is_wanting: AtomicBool::new(false),
            share: config.turn_share().map(|share| Share::of(count as usize, share as usize)),
            taken: Mutex::default(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// So many of them, where there are any and all of them are free.
    pub(super) fn take(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
        self.free.clone().try_acquire_many_owned(count).ok()
    }

    /// A turn may wait for the next place. True where one is free already.
    pub(super) fn want(&self) -> bool {
        self.is_wanting.store(true, Ordering::Release);
        self.free() > 0
    }

    /// Whether somebody has wanted one since this was asked.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanting.swap(false, Ordering::AcqRel)
    }

    /// Whose turns have as many places as one token may have: they wait.
    pub(super) fn barred(&self) -> Vec<Principal> {
        let Some(share) = self.share else { return Vec::new() };
        self.taken().iter().filter(|(_, taken)| **taken >= share.usual).map(|(&whose, _)| whose).collect()
    }

    /// Counts a place of this principal's; false where it is not to have one more.
    fn grant(&self, whose: Principal, cause: Cause) -> bool {
        let Some(share) = self.share.filter(|_| whose != Principal::OPERATOR) else { return true };
        let mut counts = self.taken();
        let taken = counts.entry(whose).or_default();
        let is_counted = match cause {
            Cause::Wanted => *taken < share.usual,
            Cause::Claimed => *taken < share.most,
            Cause::Held => true,
        };
        *taken += usize::from(is_counted);
        is_counted
    }

    /// One less; whether it had its share until now.
    fn take_back(&self, whose: Principal) -> bool {
        let Some(share) = self.share.filter(|_| whose != Principal::OPERATOR) else { return false };
        let mut counts = self.taken();
        let Some(taken) = counts.get_mut(&whose) else { return false };
        let had_share = *taken == share.usual;
        *taken = taken.saturating_sub(1);
        if *taken == 0 {
            counts.remove(&whose);
        }
        had_share
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Principal, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a turn has of its token's share of the places, until it is dropped.
#[derive(Debug)]
pub struct Part {
    host: Host,
    whose: Principal,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.host.places().take_back(self.whose) {
            // Its turns were passed over: whoever looks next begins before them.
            self.host.store().wake().queue.look_from_front();
        }
    }
}

impl Host {
    /// Whose turns wait, since they have as many places here as one token may have.
    pub fn barred(&self) -> Vec<Principal> {
        self.places().barred()
    }

    /// A part of its token's share for a turn; `None` where the token has all of it.
    pub fn part(&self, turn: TurnId) -> Option<Part> {
        self.part_for(turn, Cause::Wanted)
    }

    /// The same for a turn that was claimed just now; without a part it is to be given back.
    pub(super) fn part_of_claimed(&self, turn: TurnId) -> Option<Part> {
        self.part_for(turn, Cause::Claimed)
    }

    /// The same for a turn that has a place elsewhere, or here: it is not refused.
    pub fn part_of_held(&self, turn: TurnId) -> Option<Part> {
        self.part_for(turn, Cause::Held)
    }

    fn part_for(&self, turn: TurnId, cause: Cause) -> Option<Part> {
        let whose = Principal::of(turn.0);
        self.places().grant(whose, cause).then(|| Part { host: self.clone(), whose })
    }
}

/// A turn's place.
#[derive(Debug)]
pub(super) struct Permit {
    /// First the place is free, and then the share.
    _place: OwnedSemaphorePermit,
    _part: Part,
}

impl Permit {
    pub(super) fn new(place: OwnedSemaphorePermit, part: Part) -> Permit {
        Permit { _place: place, _part: part }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_several_tokens_one_leaves_places_to_others() {
        let tokens = |count| vec!["t".to_owned(); count];
        let places =
            |count| Places::new(&Config { client_tokens: tokens(count), turns_max: 4, ..Config::default() });
        let [one, other] = [0, 1].map(Principal::client);
        let shared = places(2);
        assert!((0..3).all(|_| shared.grant(one, Cause::Wanted)));
        assert!(!shared.grant(one, Cause::Wanted) && shared.grant(other, Cause::Wanted));
        assert_eq!(shared.barred(), [one]);
        assert!(!shared.grant(one, Cause::Claimed), "the last place is for others");
        assert!(shared.grant(one, Cause::Held), "it has a place");
        assert!(!shared.take_back(one), "it still has its share");
        assert!(shared.take_back(one));
        assert_eq!(shared.barred(), []);
        assert!((0..9).all(|_| shared.grant(Principal::OPERATOR, Cause::Wanted)));
        let Share { usual, most } = Share::of(64, 51);
        assert_eq!((usual, most), (51, 57));
        let alone = places(1);
        assert!(
            (0..9).all(|_| alone.grant(one, Cause::Wanted)) && alone.barred().is_empty(),
            "nobody is beside it"
        );
    }
}
