//! Capacity that is kept here for turns while they are accepted, or claimed.
//!
//! Owns what is offered: slots, and, of workers that are ready, lanes. A turn that is offered a worker is
//! `running` from its claim on: the worker receives the turn as soon as that is known to be committed (I10).
//! Refuses to keep what is not used: the drop of a reservation frees all of it. Refuses the whole of a
//! worker to one claim: turns that are accepted meanwhile must not start another one.

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    host::Host,
    registry::TurnSlot,
    route::{find_worker, find_worker_of},
};
use crate::{
    agent::Scope,
    descriptors,
    host::{Lane, ReservedLanes},
    store::{
        accept::{Accepted, ClaimOffer, NewTurn},
        claim::{Claim, Phase, Ready, Seats},
        turns::Agent,
    },
    task::Kind,
};

/// A slot for a turn that is about to be accepted, and what a claim for it may be offered.
#[derive(Debug)]
pub struct Reservation {
    slot: TurnSlot,
    offer: ClaimOffer,
    /// To the shared worker of the offer.
    lane: Option<Lane>,
}

impl Reservation {
    /// What may be claimed for it.
    pub fn offer(&self) -> ClaimOffer {
        self.offer
    }
}

/// Slots and lanes for turns that are about to be claimed.
#[derive(Debug)]
pub struct ClaimCapacity {
    permits: OwnedSemaphorePermit,
    ready: Ready,
    lanes: Vec<ReservedLanes>,
}

impl ClaimCapacity {
    /// How many turns it is for.
    pub fn slots(&self) -> usize {
        self.permits.num_permits()
    }

    /// Workers that can have a turn at once.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The lane that was kept for a turn which was claimed for a shared worker.
    fn lane(&mut self, claim: &Claim) -> Option<Lane> {
        let is_for = |lanes: &&mut ReservedLanes| claim.phase == Phase::Running(lanes.worker());
        self.lanes.iter_mut().find(is_for)?.take(claim.turn)
    }
}

/// Lanes as a claim must know them.
fn describe(lanes: &ReservedLanes) -> Seats {
    let (agent, revision) = lanes.agent();
    let count = i32::try_from(lanes.count()).unwrap_or(i32::MAX);
    Seats { agent: agent.to_owned(), revision, worker: lanes.worker(), count }
}

impl Host {
    /// Keeps room for a turn that is about to be accepted; `None` where there is none, or where no worker could
    /// be started for it.
    pub fn reserve(&self, new: &NewTurn) -> Option<Reservation> {
        if descriptors::starts() == 0 {
            return None;
        }
        let (slots, workers) = (self.deps().slots(), self.workers());
        let permit = slots.take(1)?;
        let slot = TurnSlot::new(permit, slots.share(new.id)?);
        let has_room = || workers.startable(1) > 0;
        let spec = &new.agent.spec;
        if spec.scope == Scope::Shared {
            // An input that must be checked first is not for a worker yet.
            let agent = (new.agent.name.as_str(), new.agent.revision);
            let lane = spec.guards.is_empty().then(|| workers.lane_at_once(agent, new.id)).flatten();
            if lane.is_none() && !has_room() && !workers.has_free_lane() {
                return None;
            }
            let offer = ClaimOffer { generation: None, worker: lane.as_ref().map(Lane::worker) };
            return Some(Reservation { slot, offer, lane });
        }
        let warm = self.warm_of(new.conversation);
        if warm.is_none() && !has_room() {
            return None;
        }
        let idle = warm.and_then(|warm| warm.idle).filter(|(_, revision)| *revision == new.agent.revision);
        let worker = idle.map(|(worker, _)| worker);
        let offer = ClaimOffer { generation: warm.map(|warm| warm.generation), worker };
        Some(Reservation { slot, offer, lane: None })
    }

    /// Keeps capacity for this many turns at most; `None` where there is none: the queue is looked at again when
    /// there is.
    pub fn capacity(&self, most: usize) -> Option<ClaimCapacity> {
        let (slots, workers) = (self.deps().slots(), self.workers());
        // A turn may need a worker, so without room for one the turn waits in the queue.
        let most = most.min(descriptors::starts());
        let startable = || if workers.has_free_lane() { most } else { workers.startable(most) };
        let Some(permits) = slots.take(slots.free().div_ceil(2).min(startable())) else {
            if slots.want() && startable() > 0 {
                self.deps().store().wake().queue.look();
            }
            return None;
        };
        let lanes = workers.reserve_lanes(permits.num_permits());
        let ready =
            Ready { warm: self.warm(), seats: lanes.iter().map(describe).collect(), barred: slots.barred() };
        Some(ClaimCapacity { permits, ready, lanes })
    }

    /// Takes a turn that was accepted for this reservation. Asked for again after its answer was lost it may run
    /// here already, or there may be no room any more: then it is left to be adopted.
    pub fn take_in(&self, accepted: &Accepted, agent: Agent, reserved: Option<Reservation>) {
        let running = self.deps().running();
        let Some(claim) = accepted.claim.clone().filter(|claim| !running.has(claim)) else { return };
        let Some(Reservation { slot, lane, .. }) = reserved else { return };
        let Some(reach) = running.admit(&claim, Some(slot)) else { return };
        note_start(&claim);
        let finding = find_worker_of(self.clone(), claim, agent, reach, lane, Instant::now());
        self.deps().supervisor().spawn(Kind::Turn, "turn", finding);
    }

    /// Takes a turn that was claimed for this capacity. Without a slot, or released meanwhile, it is not
    /// taken, and the claim is left to be given back.
    pub fn take(&self, claim: Claim, capacity: &mut ClaimCapacity) -> bool {
        let Some(permit) = capacity.permits.split(1) else { return false };
        let Some(share) = self.deps().slots().share_of_claimed(claim.turn) else { return false };
        let lane = capacity.lane(&claim);
        let slot = Some(TurnSlot::new(permit, share));
        let Some(reach) = self.deps().running().admit(&claim, slot) else { return false };
        note_start(&claim);
        let finding = find_worker(self.clone(), claim, reach, lane);
        self.deps().supervisor().spawn(Kind::Turn, "turn", finding);
        true
    }
}

/// A turn that no worker has yet may need one of its own.
fn note_start(claim: &Claim) {
    if claim.phase == Phase::Starting {
        descriptors::promised();
    }
}
