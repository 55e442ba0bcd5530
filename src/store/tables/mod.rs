//! The statements, one file per table or per operation on several tables.

pub mod accept;
pub mod adoption;
pub mod agents;
pub mod beat;
pub mod blockers;
pub mod claim;
pub mod closing;
pub mod commands;
pub mod conversations;
pub mod events;
pub mod inflight;
pub mod lists;
pub(in crate::store) mod locked;
pub mod pages;
pub mod past;
pub mod remote_turns;
pub mod remote_workers;
pub mod replicas;
pub mod rewound;
pub mod turns;
pub mod worker_tokens;
pub mod workers;
