//! In-memory state of this process between two polls. All of it is a cache or a hint: the tables hold the facts.

pub mod accept_batch;
pub(in crate::store) mod agent_cache;
pub mod batch_reader;
pub(in crate::store) mod blockers_told;
pub mod conversation_subscriptions;
pub mod group_commit;
pub(in crate::store) mod locked_turns;
pub mod notify_listener;
pub mod notify_sender;
pub mod poller;
pub mod queue_hints;
pub(in crate::store) mod read_batch;
pub(in crate::store) mod recent_events;
pub mod ring;
pub mod rings;
pub mod seen_commits;
pub mod subscriptions;
pub mod wake_ups;
