//! Shared workers: one process, many turns at once.
//!
//! ```text
//! pool ─► router ─► a lane a turn
//!            ▲
//! worker ────┘ the life of the process, and what it says
//! ```

mod lane;
mod pool;
mod reserved;
mod router;
mod served;
mod waits;
mod worker;

pub use self::{lane::Lane, reserved::ReservedLanes};
pub(super) use self::{
    pool::Pool,
    worker::{serve, serve_on},
};
