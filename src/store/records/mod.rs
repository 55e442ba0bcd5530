//! Plain data that statements take and give. No SQL and no connection.

pub mod assignment;
