//! The runtime `kubernetes` against a scripted API server: what it asks for, what it makes of the answers, and
//! how it goes on when the server was away.
//!
//! A real cluster has a scheduler, kubelets and a garbage collector. Here the test plays them: it says what
//! becomes of a pod, in the words that they use.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod pods;
mod server;
mod world;
