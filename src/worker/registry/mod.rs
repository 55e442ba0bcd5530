//! What this replica knows of its turns: those that run, the fate of past claims, and the turn slots.

mod past_claims;
mod running;
mod turn_slots;

pub(super) use self::{
    running::{Interruption, Reach, Running},
    turn_slots::{SlotShare, TurnSlot, TurnSlots},
};
