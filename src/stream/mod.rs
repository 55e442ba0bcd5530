//! Streams: watching a turn, or a whole conversation, from its log.
//!
//! Owns the order of reading ([`tail`], [`thread`]), the bytes that a client sees ([`render`]) and
//! the life of one stream from its first byte to its last ([`feed`]). Refuses to know who runs a
//! turn: all that is told here stands in the log, so every replica tells the same (I4).

pub mod feed;
pub mod render;
pub mod tail;
pub mod thread;

pub use feed::{Feed, Reader, Step, Telling};
pub use tail::{Tail, TailError};
pub use thread::{Position, Thread};
