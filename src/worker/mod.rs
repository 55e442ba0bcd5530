//! Workers: a turn on a process, from the claim to the last word.
//!
//! ```text
//! host ─► begin ─► a conversation's own: (warm worker | life ─► start ─► launch ─► shim ─► the agent)
//!            │                                └──► line ─► run: hand_over, transcript, clocks, pen ─► ending
//!            └───► shared: (pool ─► switchboard | its life ─► start ─► …) ──► line ─► run: the same
//! kubernetes ─► (a pod, whose worker calls) ─┐
//! remote ─► (offered and taken over HTTP) ──────────────────────────────────► line ─► run: the same
//! ```
//! Upper half: [`host`] (warm workers, turns under way, orders), `places`, [`slots`], [`berth`] (room that is kept for a
//! claim), `begin`, `guards`, `job`, `life`, `start`, [`ready`], `hand_over`, `line`, `run`, `pen`, `ending`, `runs`, `fates`; for workers of many
//! turns `shared`, `pool` and `switchboard`. Lower half: [`process`] and what it stands on ([`shim`], `birth`,
//! [`user`], [`workspace`], [`namespace`], [`strays`], [`codec`], [`wire`]; [`relay`] and [`past`] for hosts that pass on what a process
//! says).

mod begin;
pub mod berth;
mod birth;
mod clocks;
pub mod codec;
mod ending;
pub mod exit;
mod fates;
mod guards;
mod hand_over;
mod history;
pub mod host;
mod job;
#[cfg_attr(not(feature = "kubernetes"), path = "kubernetes_off.rs")]
pub mod kubernetes;
pub mod launch;
mod life;
pub mod lifeline;
mod line;
pub mod namespace;
pub mod past;
mod pen;
mod places;
mod pool;
pub mod process;
pub mod ready;
pub mod relay;
pub mod remote;
mod run;
mod runs;
mod shared;
pub mod shim;
pub mod slots;
mod start;
mod stderr;
pub mod strays;
mod switchboard;
pub mod transcript;
mod tree;
pub mod user;
pub mod wire;
pub mod workspace;
