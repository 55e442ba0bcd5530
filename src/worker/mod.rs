//! The turns of this replica: from a claim, through a worker of any runtime, to the last word.
//!
//! ```text
//! reserve ─► route ─► crate::host: a process ───────────┐
//!               └───► kubernetes: a pod, whose worker ──┤
//!                     calls some replica                ├─► turn::run ─► turn::finish ─► the log
//! remote: a worker that calls this replica ─────────────┘
//! ```
//! [`host`] is what the engine and the doors reach: workers, turns under way, orders, stops. `deps` is what all of it needs,
//! `registry` the lists of what runs, `turn` one turn, `owner` what this replica is to [`crate::host`]. A runtime is one folder
//! with a [`Link`](crate::host::Link).

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
