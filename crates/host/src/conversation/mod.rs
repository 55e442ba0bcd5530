//! A conversation's own process: one turn after another, and what it knows stays with it.

mod life;
mod link;

pub(super) use self::life::live;
