//! One worker process, from its workspace to the end of everything that it started.
//!
//! ```text
//! spawn ──► guard ──► birth ──► the agent
//!   │         │ watches: proc_tree, guard_protocol
//!   ▼         ▼
//! child: send, recv, end ◄── exit, stderr
//! ```
//! [`guard`] runs in a process of its own, between this program and the agent. [`namespace`], [`cgroup`], [`strays`] and
//! [`user`] are what a machine gives to keep a worker apart, and bound.

mod birth;
pub mod cgroup;
mod child;
mod exit;
pub mod guard;
mod guard_protocol;
pub mod namespace;
pub(crate) mod proc_tree;
mod ready;
mod spawn;
mod stderr;
pub mod strays;
pub mod user;
pub mod workspace;

pub use self::{
    child::{Heard, Inlet, Process, Renewer, SendError, UNREAD},
    exit::{Exit, ExitReport},
    ready::{NotReady, lapsed, until_ready},
    spawn::{FILE_MAX, Launch, StartError, StartErrorKind},
    stderr::TAIL_BYTES_MAX,
};
