//! One worker process, from its workspace to the end of everything it started.
//!
//! ```text
//! spawn ──► guard ──► birth ──► the agent
//!   │         │ watches: proc_tree, guard_protocol
//!   ▼         ▼
//! child: send, recv, end ◄── exit, stderr
//! ```
//! [`guard`] runs as a process of its own, between this program and the agent. [`namespace`], [`strays`] and
//! [`user`] isolate workers by means of the operating system.

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
