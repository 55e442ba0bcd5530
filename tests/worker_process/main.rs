//! Worker processes, with real agents and the real guard.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod bench;
mod groups;
mod life;
mod talk;
