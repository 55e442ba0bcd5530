//! Connecting to Postgres as operators run it: behind TLS, with a rotated password, refusing logins for a while or for
//! good. Each test has a server of its own, since it reconfigures the server; `psql` is run for comparison.

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
