//! Berths: room that is kept here for turns while they are accepted, or claimed.
//!
//! Owns what is offered: places, and, of workers that are ready, lines. A turn that is offered one is
//! `running` from its claim on: its worker receives it as soon as that is known to be committed (I10).
//! Refuses to keep what is not used: whoever drops a berth or a room frees all of it. Refuses the whole of a
//! worker to one claim: those who accept meanwhile must not start another one.

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    begin::{begin, place},
    host::Host,
    line::Extension,
    places::Permit,
    switchboard::Seats,
};
use crate::{
    agent::Scope,
    descriptors,
    store::{
        accept::{Accepted, NewTurn, Offer},
        claim::{Claim, Phase, Ready},
        turns::Agent,
    },
    task::Kind,
};

/// Room for a turn that is about to be accepted.
#[derive(Debug)]
pub struct Berth {
    permit: Permit,
    offer: Offer,
    /// To the shared worker of the offer.
    line: Option<Extension>,
}

impl Berth {
    /// What may be claimed for it.
    pub fn offer(&self) -> Offer {
        self.offer
    }
}

/// Room for turns that are about to be claimed.
#[derive(Debug)]
pub struct Room {
    permits: OwnedSemaphorePermit,
    ready: Ready,
    seats: Vec<Seats>,
}

impl Room {
    /// How many turns it is for.
    pub fn places(&self) -> usize {
        self.permits.num_permits()
    }

    /// Workers that can have one at once.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The line that was kept for a turn which was claimed for a shared worker.
    fn line(&mut self, claim: &Claim) -> Option<Extension> {
        self.seats.iter_mut().find(|seats| seats.are_for(claim))?.take(claim.turn)
    }
}

impl Host {
    /// Keeps room for a turn that is about to be accepted; `None` where there is none, or where no worker could
    /// be started for it.
    pub fn reserve(&self, new: &NewTurn) -> Option<Berth> {
        if descriptors::starts() == 0 {
            return None;
        }
        let place = self.places().take(1)?;
        let permit = Permit::new(place, self.part(new.id)?);
        let has_room = || self.startable(1) > 0;
        let spec = &new.agent.spec;
        if spec.scope == Scope::Shared {
            // An input that must be looked at first is not for a worker yet.
            let line = spec.guards.is_empty().then(|| self.pool().line_at_once(&new.agent, new.id)).flatten();
            if line.is_none() && !has_room() && !self.pool().has_room() {
                return None;
            }
            let offer = Offer { generation: None, worker: line.as_ref().map(Extension::worker) };
            return Some(Berth { permit, offer, line });
        }
        let warm = self.warm_of(new.conversation);
        if warm.is_none() && !has_room() {
            return None;
        }
        let idle = warm.and_then(|warm| warm.idle).filter(|(_, revision)| *revision == new.agent.revision);
        let worker = idle.map(|(worker, _)| worker);
        let offer = Offer { generation: warm.map(|warm| warm.generation), worker };
        Some(Berth { permit, offer, line: None })
    }

    /// Keeps room for so many turns at most; `None` where there is none: the queue is looked at again when
    /// there is.
    pub fn room(&self, most: usize) -> Option<Room> {
        let places = self.places();
        // A turn may need a worker, so without room for one it waits in the queue.
        let most = most.min(descriptors::starts());
        let startable = || if self.pool().has_room() { most } else { self.startable(most) };
        let Some(permits) = places.take(places.free().div_ceil(2).min(startable())) else {
            if places.want() && startable() > 0 {
                self.store().wake().queue.look();
            }
            return None;
        };
        let seats = self.pool().seats(permits.num_permits());
        let ready = Ready {
            warm: self.warm(),
            seats: seats.iter().map(Seats::describe).collect(),
            barred: places.barred(),
        };
        Some(Room { permits, ready, seats })
    }

    /// Berths were given up: where a turn may have waited for a place meanwhile, the queue is looked at.
    pub fn look_if_wanted(&self) {
        if self.places().free() > 0 && self.places().is_wanted() {
            self.store().wake().queue.look();
        }
    }

    /// Takes a turn that was accepted for this berth. Asked for again after its answer was lost it may run
    /// here already, or there may be no room any more: then it is left to be adopted.
    pub fn take_in(&self, accepted: &Accepted, agent: Agent, berth: Option<Berth>) {
        let Some(claim) = accepted.claim.clone().filter(|claim| !self.run_list().has(claim)) else { return };
        let Some(Berth { permit, line, .. }) = berth else { return };
        let Some(reach) = self.run_list().admit(self, &claim, Some(permit)) else { return };
        note_start(&claim);
        let placing = place(self.clone(), claim, agent, reach, line, Instant::now());
        self.supervisor().spawn(Kind::Turn, "turn", placing);
    }

    /// Takes a turn that was claimed for this room. Without a place, or given up meanwhile, it is not
    /// taken, and the claim is left to be given back.
    pub fn take(&self, claim: Claim, room: &mut Room) -> bool {
        let Some(place) = room.permits.split(1) else { return false };
        let Some(part) = self.part_of_claimed(claim.turn) else { return false };
        let permit = Permit::new(place, part);
        let line = room.line(&claim);
        let Some(reach) = self.run_list().admit(self, &claim, Some(permit)) else { return false };
        note_start(&claim);
        self.supervisor().spawn(Kind::Turn, "turn", begin(self.clone(), claim, reach, line));
        true
    }
}

/// A turn that no worker has yet may need one of its own.
fn note_start(claim: &Claim) {
    if claim.phase == Phase::Starting {
        descriptors::promised();
    }
}
