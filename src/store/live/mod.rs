//! What this process knows between two looks at the tables. None of it is a fact: the tables have those.

pub mod accept_batch;
pub mod conversation_subscriptions;
pub mod group_commit;
pub mod notify_listener;
pub mod notify_sender;
pub mod poller;
pub mod queue_hints;
pub mod read_batch;
pub(in crate::store) mod recent_events;
pub mod ring;
pub mod seen_commits;
pub mod subscriptions;
