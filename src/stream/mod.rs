//! Streams: watching a turn, or a whole conversation, from its log.
//!
//! Owns the order of reading ([`tail`], [`conversation_tail`]), the bytes that a client sees ([`render`]) and the
//! life of a stream from first to last byte ([`feed`]). Does not know which replica runs a turn: everything shown
//! here is in the log, so every replica shows the same (I4).

pub mod conversation_tail;
pub mod feed;
pub mod render;
pub mod tail;

pub use conversation_tail::{ConversationTail, Position};
pub use feed::{EventReader, Feed, StreamStep, Telling};
pub use tail::{Tail, TailError};
