//! The door of Postgres as people have it: behind TLS, with a password that is rotated, closed for good or for a
//! while. Each test has a server of its own, since it reconfigures that; `psql` is asked beside us.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "this suite asks Postgres by SQL of its own")]

mod absence;
mod certificates;
mod denials;
mod rotation;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tls;
