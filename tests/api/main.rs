//! The HTTP API, over real HTTP and a real Postgres. The tests act as the engine by the store's own calls, so that each
//! test decides what happens when.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

mod auth;
mod browsers;
mod connections;
mod cursors;
mod document;
mod generated;
mod health;
mod http2;
mod lists;
mod orders;
mod refusals;
mod retained;
mod streams;
mod threads;
mod turns;
mod worker;
mod worker_tokens;
mod world;
