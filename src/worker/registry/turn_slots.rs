//! Turn slots: how many turns this replica runs at once.
//!
//! Owns the count, and whether a turn may wait for a slot, so that the queue is looked at when one is free
//! and not after each turn. Owns also how many of them the turns of one client token have: where there are several
//! tokens, one token's turns leave some of the slots to others, however many of them wait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Config, id::TurnId, principal::Principal, store::Store};

/// What the turns of one token may have.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// With so many the token's turns are passed over.
    usual: usize,
    /// What is claimed at once may be a few more: never all that others were left.
    most: usize,
}

impl Share {
    fn of(slots: usize, usual: usize) -> Share {
        Share { usual, most: usual + slots.saturating_sub(usual) / 2 }
    }
}

/// Why a turn takes a part of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShareReason {
    /// It is to be claimed.
    Wanted,
    /// It was claimed just now.
    Claimed,
    /// It is held, by whomever.
    Held,
}

/// The slots of one replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::worker) struct TurnSlots(Arc<SlotParts>);

#[derive(Debug)]
struct SlotParts {
    store: Store,
    count: u32,
    free: Arc<Semaphore>,
    is_wanting: AtomicBool,
    shares: TokenShares,
}

/// How many slots the turns of each token have.
#[derive(Debug)]
struct TokenShares {
    /// How many the turns of one token may have; `None`: all.
    each: Option<Share>,
    taken: Mutex<HashMap<Principal, usize>>,
}

impl TurnSlots {
    pub(in crate::worker) fn new(config: &Config, store: Store) -> Self {
        let count = config.turns_max;
        TurnSlots(Arc::new(SlotParts {
            store,
            count,
            free: Arc::new(Semaphore::new(count as usize)),
            is_wanting: AtomicBool::new(false),
            shares: TokenShares::new(config),
        }))
    }

    /// How many there are.
    pub(in crate::worker) fn count(&self) -> usize {
        self.0.count as usize
    }

    /// How many are free.
    pub(in crate::worker) fn free(&self) -> usize {
        self.0.free.available_permits()
    }

    /// So many of them, where there are any and all of them are free.
    pub(in crate::worker) fn take(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
        self.0.free.clone().try_acquire_many_owned(count).ok()
    }

    /// A turn may wait for the next slot. True where one is free already.
    pub(in crate::worker) fn want(&self) -> bool {
        self.0.is_wanting.store(true, Ordering::Release);
        self.free() > 0
    }

    /// Has the queue looked at where a turn may have waited for a slot, and there is one.
    pub(in crate::worker) fn look_if_wanted(&self) {
        if self.free() > 0 && self.0.is_wanting.swap(false, Ordering::AcqRel) {
            self.0.store.wake().queue.look();
        }
    }

    /// A part of its token's share for a turn; `None` where the token has all of it.
    pub(in crate::worker) fn share(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Wanted)
    }

    /// The same for a turn that was claimed just now; without a part it is to be given back.
    pub(in crate::worker) fn share_of_claimed(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Claimed)
    }

    /// The same for a turn that has a slot elsewhere, or here: it is not refused.
    pub(in crate::worker) fn share_of_held(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Held)
    }

    fn share_for(&self, turn: TurnId, cause: ShareReason) -> Option<SlotShare> {
        let whose = Principal::of(turn.0);
        self.0.shares.grant(whose, cause).then(|| SlotShare { slots: self.clone(), whose })
    }

    /// Whose turns have as many slots as one token may have: they wait.
    pub(in crate::worker) fn barred(&self) -> Vec<Principal> {
        self.0.shares.barred()
    }
}

impl TokenShares {
    fn new(config: &Config) -> TokenShares {
        let count = config.turns_max as usize;
        let each = config.turn_share().map(|share| Share::of(count, share as usize));
        TokenShares { each, taken: Mutex::default() }
    }

    /// Whose turns have as many slots as one token may have: they wait.
    fn barred(&self) -> Vec<Principal> {
        let Some(share) = self.each else { return Vec::new() };
        self.taken().iter().filter(|(_, taken)| **taken >= share.usual).map(|(&whose, _)| whose).collect()
    }

    /// Counts a slot of this principal's; false where it is not to have one more.
    fn grant(&self, whose: Principal, cause: ShareReason) -> bool {
        let Some(share) = self.each.filter(|_| whose != Principal::OPERATOR) else { return true };
        let mut counts = self.taken();
        let taken = counts.entry(whose).or_default();
        let is_counted = match cause {
            ShareReason::Wanted => *taken < share.usual,
            ShareReason::Claimed => *taken < share.most,
            ShareReason::Held => true,
        };
        *taken += usize::from(is_counted);
        is_counted
    }

    /// One less; whether it had its share until now.
    fn take_back(&self, whose: Principal) -> bool {
        let Some(share) = self.each.filter(|_| whose != Principal::OPERATOR) else { return false };
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

/// What a turn has of its token's share of the slots, until it is dropped.
#[derive(Debug)]
pub struct SlotShare {
    slots: TurnSlots,
    whose: Principal,
}

impl Drop for SlotShare {
    fn drop(&mut self) {
        if self.slots.0.shares.take_back(self.whose) {
            // Its turns were passed over: the next look at the queue begins before them.
            self.slots.0.store.wake().queue.look_from_front();
        }
    }
}

/// A turn's slot, with its part of its token's share.
#[derive(Debug)]
pub(in crate::worker) struct TurnSlot {
    /// First the slot is free, and then the share.
    permit: Option<OwnedSemaphorePermit>,
    share: SlotShare,
}

impl TurnSlot {
    pub(in crate::worker) fn new(permit: OwnedSemaphorePermit, share: SlotShare) -> TurnSlot {
        TurnSlot { permit: Some(permit), share }
    }
}

impl Drop for TurnSlot {
    fn drop(&mut self) {
        self.permit = None;
        // First the slot is free, then the next turn is looked for, where one may have waited for it.
        self.share.slots.look_if_wanted();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_several_tokens_one_leaves_slots_to_others() {
        let tokens = |count| vec!["t".to_owned(); count];
        let shares = |count| {
            TokenShares::new(&Config { client_tokens: tokens(count), turns_max: 4, ..Config::default() })
        };
        let [one, other] = [0, 1].map(Principal::client);
        let shared = shares(2);
        assert!((0..3).all(|_| shared.grant(one, ShareReason::Wanted)));
        assert!(!shared.grant(one, ShareReason::Wanted) && shared.grant(other, ShareReason::Wanted));
        assert_eq!(shared.barred(), [one]);
        assert!(!shared.grant(one, ShareReason::Claimed), "the last slot is for others");
        assert!(shared.grant(one, ShareReason::Held), "it has a slot");
        assert!(!shared.take_back(one), "it still has its share");
        assert!(shared.take_back(one));
        assert_eq!(shared.barred(), []);
        assert!((0..9).all(|_| shared.grant(Principal::OPERATOR, ShareReason::Wanted)));
        let Share { usual, most } = Share::of(64, 51);
        assert_eq!((usual, most), (51, 57));
        let alone = shares(1);
        assert!(
            (0..9).all(|_| alone.grant(one, ShareReason::Wanted)) && alone.barred().is_empty(),
            "nobody is beside it"
        );
    }
}
