//! Capacity reserved here for turns while they are accepted or claimed.
//!
//! Owns what is offered: turn slots, and lanes of shared workers that are ready. A turn that is offered a worker
//! is `running` from its claim on, and the worker receives the turn once that commit is known (I10). Unused
//! capacity is freed when the reservation is dropped. One claim never takes all lanes of a worker: turns that are
//! accepted at the same time would have to start another one.

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
    task::TaskKind,
};

/// A slot for a turn that is about to be accepted, and what its claim may be offered.
#[derive(Debug)]
pub struct Reservation {
    slot: TurnSlot,
    offer: ClaimOffer,
    /// A lane of the shared worker named in the offer.
    lane: Option<Lane>,
}

impl Reservation {
    /// What the accept statement may claim for the turn.
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
    /// The number of turns this capacity is for.
    pub fn slots(&self) -> usize {
        self.permits.num_permits()
    }

    /// Workers that can take a turn without a start.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The lane reserved for this claim, if the claim was made for a shared worker.
    fn lane(&mut self, claim: &Claim) -> Option<Lane> {
        let is_for = |lanes: &&mut ReservedLanes| claim.phase == Phase::Running(lanes.worker());
        self.lanes.iter_mut().find(is_for)?.take(claim.turn)
    }
}

/// Reserved lanes as the claim statement needs to know them.
fn describe(lanes: &ReservedLanes) -> Seats {
    let (agent, revision) = lanes.agent();
    let count = i32::try_from(lanes.count()).unwrap_or(i32::MAX);
    Seats { agent: agent.to_owned(), revision, worker: lanes.worker(), count }
}

impl Host {
    /// Reserves capacity for a turn that is about to be accepted; `None` if there is no slot, or no worker and no
    /// room to start one.
    pub fn reserve(&self, new: &NewTurn) -> Option<Reservation> {
        if descriptors::starts() == 0 {
            return None;
        }
        let (slots, workers) = (&self.deps().slots, self.workers());
        let permit = slots.take(1)?;
        let slot = TurnSlot::new(permit, slots.share(new.id)?);
        let has_room = || workers.startable(1) > 0;
        let spec = &new.agent.spec;
        if spec.scope == Scope::Shared {
            // A guarded agent's input is checked before a worker may be chosen, so the turn gets no lane yet.
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

    /// Reserves capacity for at most this many turns; `None` if there is none. The queue is then polled when
    /// capacity is free again.
    pub fn capacity(&self, most: usize) -> Option<ClaimCapacity> {
        let (slots, workers) = (&self.deps().slots, self.workers());
        // Any turn may need a new worker, so turns stay queued where none can be started.
        let most = most.min(descriptors::starts());
        let startable = || if workers.has_free_lane() { most } else { workers.startable(most) };
        let Some(permits) = slots.take(slots.free().div_ceil(2).min(startable())) else {
            if slots.want() && startable() > 0 {
                self.deps().store.wake().queue.look();
            }
            return None;
        };
        let lanes = workers.reserve_lanes(permits.num_permits());
        let ready =
            Ready { warm: self.warm(), seats: lanes.iter().map(describe).collect(), barred: slots.barred() };
        Some(ClaimCapacity { permits, ready, lanes })
    }

    /// Takes a turn that was accepted for this reservation. After a retried accept the turn may already run here,
    /// or the reservation may be gone: the turn is then left for `settle`.
    pub fn take_in(&self, accepted: &Accepted, agent: Agent, reserved: Option<Reservation>) {
        let running = &self.deps().running;
        let Some(claim) = accepted.claim.clone().filter(|claim| !running.has(claim)) else { return };
        let Some(Reservation { slot, lane, .. }) = reserved else { return };
        let Some(reach) = running.admit(&claim, Some(slot)) else { return };
        note_start(&claim);
        let finding = find_worker_of(self.clone(), claim, agent, reach, lane, Instant::now());
        self.deps().supervisor.spawn(TaskKind::Turn, "turn", finding);
    }

    /// Takes a turn that was claimed for this capacity. Returns false if no slot is left or the claim was released
    /// meanwhile: the claim is then given back by `settle`.
    pub fn take(&self, claim: Claim, capacity: &mut ClaimCapacity) -> bool {
        let Some(permit) = capacity.permits.split(1) else { return false };
        let Some(share) = self.deps().slots.share_of_claimed(claim.turn) else { return false };
        let lane = capacity.lane(&claim);
        let slot = Some(TurnSlot::new(permit, share));
        let Some(reach) = self.deps().running.admit(&claim, slot) else { return false };
        note_start(&claim);
        let finding = find_worker(self.clone(), claim, reach, lane);
        self.deps().supervisor.spawn(TaskKind::Turn, "turn", finding);
        true
    }
}

/// A turn in `starting` may need a new process: reserves the descriptors of one start.
fn note_start(claim: &Claim) {
    if claim.phase == Phase::Starting {
        descriptors::promised();
    }
}
