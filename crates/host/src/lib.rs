//! The host of stdio workers: processes that serve a conversation alone, or many turns at once.
//!
//! ```text
//! WorkerHost ─► conversation: a process of its own ─┐                        ┌─► the log      (a replica)
//!      └──────► shared: router ─► a lane a turn ────┴─► Link ─► run ─► Outlet ┤
//!                                                                            └─► HTTP         (`lastword work`)
//! ```
//! One host serves both programs that run workers. Three traits hold what differs: [`HostOwner`] is the program,
//! [`HostedTurn`] what it runs, and an [`Outlet`] takes a worker's messages. A [`Link`] is a turn's line to any
//! worker, including workers that are no process of this host.
//!
//! Owns which worker serves which turn, the number of processes, and the lifeline of their guards.

pub mod calling;
mod conversation;
pub mod descriptors;
mod link;
mod owner;
mod place;
pub mod process;
pub mod protocol;
mod run;
mod shared;
mod slots;
mod start;
pub mod task;
mod workers;

pub use self::{
    link::{Link, ProcessLink},
    owner::{Fate, Halt, HostOwner, HostedTurn, LATE_OUTPUT, Obstacle, Program, Started, unless_called_off},
    run::{Breach, Broken, Outlet, Step, until_end},
    shared::{Lane, ReservedLanes},
    slots::Slots,
    workers::{Census, OwnWorker, WorkerHost},
};
