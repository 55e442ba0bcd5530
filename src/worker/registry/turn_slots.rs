//! Turn slots: how many turns this replica runs at once.
//!
//! Owns the count, and whether a turn may be waiting for a slot: the queue is polled when a waited-for slot is
//! free, not after each turn. Owns the share of each client token: with several tokens, one token's turns always
//! leave some slots to the others.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Config, id::TurnId, principal::Principal, store::Store};

/// A token's share of the slots.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// With this many slots taken, the queue passes over the token's turns.
    usual: usize,
    /// Hard limit, since one claim may take several turns at once: above `usual`, yet never all that is left to
    /// others.
    most: usize,
}

impl Share {
    fn of(slots: usize, usual: usize) -> Share {
        Share { usual, most: usual + slots.saturating_sub(usual) / 2 }
    }
}

/// Why a turn takes a slot of its token's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShareReason {
    /// The turn is about to be claimed.
    Wanted,
    /// The turn was claimed just now.
    Claimed,
    /// The turn is already held, here or by another replica.
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

/// Slots in use by the turns of each token.
#[derive(Debug)]
struct TokenShares {
    /// The share of one token; `None`: no limit.
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

    /// The total.
    pub(in crate::worker) fn count(&self) -> usize {
        self.0.count as usize
    }

    pub(in crate::worker) fn free(&self) -> usize {
        self.0.free.available_permits()
    }

    /// Takes this many slots; `None` if `count` is 0 or fewer are free.
    pub(in crate::worker) fn take(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
        self.0.free.clone().try_acquire_many_owned(count).ok()
    }

    /// Records that a turn may wait for the next slot. Returns true if a slot is free already.
    pub(in crate::worker) fn want(&self) -> bool {
        self.0.is_wanting.store(true, Ordering::Release);
        self.free() > 0
    }

    /// Polls the queue if a slot is free and a turn may have waited for one.
    pub(in crate::worker) fn look_if_wanted(&self) {
        if self.free() > 0 && self.0.is_wanting.swap(false, Ordering::AcqRel) {
            self.0.store.wake().queue.look();
        }
    }

    /// Takes one slot from the share of the turn's principal; `None` if the share is used up.
    pub(in crate::worker) fn share(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Wanted)
    }

    /// Like `share` for a turn that was claimed just now; on `None` the claim must be given back.
    pub(in crate::worker) fn share_of_claimed(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Claimed)
    }

    /// Like `share` for a turn that is already held: never refused.
    pub(in crate::worker) fn share_of_held(&self, turn: TurnId) -> Option<SlotShare> {
        self.share_for(turn, ShareReason::Held)
    }

    fn share_for(&self, turn: TurnId, cause: ShareReason) -> Option<SlotShare> {
        let whose = Principal::of(turn.0);
        self.0.shares.grant(whose, cause).then(|| SlotShare { slots: self.clone(), whose })
    }

    /// The principals that use their whole share: their turns wait.
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

    fn barred(&self) -> Vec<Principal> {
        let Some(share) = self.each else { return Vec::new() };
        self.taken
            .lock()
            .iter()
            .filter(|(_, taken)| **taken >= share.usual)
            .map(|(&whose, _)| whose)
            .collect()
    }

    /// Counts one more slot for this principal; false if the share is used up.
    fn grant(&self, whose: Principal, cause: ShareReason) -> bool {
        let Some(share) = self.each.filter(|_| whose != Principal::OPERATOR) else { return true };
        let mut counts = self.taken.lock();
        let taken = counts.entry(whose).or_default();
        let is_counted = match cause {
            ShareReason::Wanted => *taken < share.usual,
            ShareReason::Claimed => *taken < share.most,
            ShareReason::Held => true,
        };
        *taken += usize::from(is_counted);
        is_counted
    }

    /// Counts one slot less. Returns whether the principal was at its share until now.
    fn take_back(&self, whose: Principal) -> bool {
        let Some(share) = self.each.filter(|_| whose != Principal::OPERATOR) else { return false };
        let mut counts = self.taken.lock();
        let Some(taken) = counts.get_mut(&whose) else { return false };
        let had_share = *taken == share.usual;
        *taken = taken.saturating_sub(1);
        if *taken == 0 {
            counts.remove(&whose);
        }
        had_share
    }
}

/// One slot of a principal's share, until dropped.
#[derive(Debug)]
pub struct SlotShare {
    slots: TurnSlots,
    whose: Principal,
}

impl Drop for SlotShare {
    fn drop(&mut self) {
        if self.slots.0.shares.take_back(self.whose) {
            // The queue had passed over this principal's turns: the next poll starts from the front again.
            self.slots.0.store.wake().queue.look_from_front();
        }
    }
}

/// A turn's slot and its place in the token's share.
#[derive(Debug)]
pub(in crate::worker) struct TurnSlot {
    /// Freed before `share`: see `Drop`.
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
        // The slot must be free before the queue is polled.
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
