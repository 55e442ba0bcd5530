//! Fixtures, counters and baselines for measurements and development. Not part of a production gateway.

pub mod fixtures;
pub mod gauges;
pub mod history;
pub mod limits;
