//! What this replica knows of its turns: those that run, the claims that left, and the slots that turns take.

mod past_claims;
mod running;
mod turn_slots;

pub(super) use self::{
    running::{Interruption, Reach, Running},
    turn_slots::{SlotShare, TurnSlot, TurnSlots},
};
