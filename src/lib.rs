//! `lastword`: a gateway for chat agents in which every accepted turn gets exactly one last word.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod engine;
pub mod event;
pub mod failure;
pub mod id;
pub mod store;
pub mod stream;
pub mod task;
pub mod telemetry;
pub mod turn;
pub mod units;
pub mod worker;
