//! Streams: watching a turn, or a whole conversation, from its log.
//!
//! Owns the order of reading ([`tail`], [`conversation_tail`]), the bytes that a client sees ([`render`]) and
//! the life of one stream from its first byte to its last ([`feed`]). Refuses to know who runs a
//! turn: all that is told here stands in the log, so every replica tells the same (I4).

pub mod conversation_tail;
pub mod feed;
pub mod render;
pub mod tail;

pub use conversation_tail::{ConversationTail, Position};
pub use feed::{EventReader, Feed, StreamStep, Telling};
pub use tail::{Tail, TailError};
