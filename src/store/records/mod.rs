//! Plain data: parameters and results of statements. No SQL and no connection.

pub mod agent;
pub mod assignment;
pub mod claim;
pub mod new_turn;
pub mod page;
pub mod word;
