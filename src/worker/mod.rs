//! The turns of this replica: from a claim, through a worker of any runtime, to the last word.
//!
//! ```text
//! reserve ─► route ─► crate::host: a process ───────────┐
//!               └───► kubernetes: a pod, whose worker ──┤
//!                     calls some replica                ├─► turn::run ─► turn::finish ─► the log
//! remote: a worker that calls this replica ─────────────┘
//! ```
//! [`host`] is the entry point for the engine and the API: workers, turns under way, commands, stops. `deps` holds
//! what all of these need, `registry` the lists of what runs, `turn` the life of one turn, `owner` this replica's
//! side of [`crate::host`]. Each runtime is one folder with an implementation of [`Link`](crate::host::Link).

mod deps;
pub mod host;
#[cfg_attr(not(feature = "kubernetes"), path = "kubernetes_off.rs")]
pub mod kubernetes;
mod leftovers;
mod owner;
mod registry;
pub mod remote;
pub mod reserve;
mod route;
pub mod turn;
