//! Workers: a turn on a process, from the claim to the last word.
//!
//! ```text
//! host ─► begin ─► (warm worker | life ─► start ─► launch ─► shim ─► the agent)
//!                         └────► run: hand_over, transcript, clocks, pen ─► ending
//! ```
//! Upper half: [`host`] (places, warm workers, orders), `begin`, `life`, `start`, `hand_over`,
//! `run`, `pen`, `ending`. Lower half: [`process`] and what it stands on ([`shim`], [`codec`], [`wire`]).

mod begin;
mod clocks;
pub mod codec;
mod ending;
pub mod exit;
mod hand_over;
pub mod host;
pub mod launch;
mod life;
pub mod lifeline;
mod pen;
pub mod process;
mod run;
pub mod shim;
mod start;
mod stderr;
pub mod transcript;
mod tree;
pub mod wire;
