//! Attacks by hostile callers, texts and workers, and their limits.
//!
//! One file for each attacked part. Each test runs the attack against real replicas, processes and a real Postgres, and
//! checks that others are not affected. `docs/SECURITY.md` says what is protected from whom.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "some attacks look at Postgres by SQL of their own")]

mod bodies;
mod descriptors;
mod door;
mod guards;
mod local;
mod pulse;
mod remote;
mod shares;
mod shown;
#[path = "../support/mod.rs"]
mod support;
mod unread;
mod workers;
