//! The runtime `kubernetes`: a pod a conversation, with a worker inside that calls home.

pub mod cluster;
pub mod manifest;
pub mod pods;
pub mod sweep;
pub mod verdict;
pub mod watch;
