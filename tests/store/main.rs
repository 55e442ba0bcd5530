//! The statements of the store, raced against each other on a real Postgres.
//!
//! Each case has a database of its own. Nothing but statements runs here: they keep the invariants alone, whatever the
//! replicas do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests plant rows and look at them by SQL of their own, and race tasks"
)]

mod accepting;
mod callers;
#[path = "../support/cases.rs"]
mod cases;
mod claiming;
mod closing;
mod fences;
mod foreign;
mod ground;
mod judging;
mod lending;
mod lists;
mod locked;
mod locks;
mod masses;
mod moving;
mod neighbours;
mod offers;
mod plans;
mod reading;
mod releases;
mod rewinding;
mod schema;
mod sweeping;
mod threads;
mod verifying;
mod words;
