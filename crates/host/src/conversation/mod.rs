//! A conversation's own process: one turn after another, and its memory stays with the conversation.

mod life;
mod link;

pub(super) use self::life::live;
