//! Variables that the platform puts into a process's environment: those of Kubernetes Services, and of OpenTelemetry.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a collector of a test spawns what it answers with")]

mod collector;
mod services;
#[path = "../support/mod.rs"]
mod support;
mod traces;
