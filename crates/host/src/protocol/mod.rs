//! The native protocol of stdio workers: lines of JSON, both ways.
//!
//! [`codec`] cuts and reads lines, [`messages`] are what they say, [`encode`] writes a worker's message again for a host
//! that passes it on. `docs/WORKERS.md` is the protocol for those who write workers.

pub mod codec;
pub mod encode;
pub mod messages;
