//! The protocol itself, checked in every interleaving of a small world. `docs/PROTOCOL.md` explains it.
//!
//! Two models. [`steps`] is the turn's: claim, start, append, finish, release, disown, close, with statements that
//! commit late or whose answers are lost, and with verdicts that may be wrong. The other, [`presence`], is about
//! verdicts: it drives the real `engine::suspicion` and shows that they are not wrong. A guard that is left out
//! ([`world::Break`]) must be found.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod choices;
mod database;
mod holds;
mod mutants;
mod presence;
mod promises;
mod steps;
mod world;
