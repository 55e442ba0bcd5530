//! The native protocol of stdio workers: JSON lines in both directions.
//!
//! [`codec`] splits and parses lines, [`messages`] defines them, [`encode`] encodes a worker's message again for a
//! host that relays it. `docs/WORKERS.md` describes the protocol for authors of workers.

pub mod codec;
pub mod encode;
pub mod messages;
