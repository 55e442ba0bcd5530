//! What measurements and development need of a database of their own. No part of a gateway that serves.

pub mod fixtures;
pub mod gauges;
pub mod history;
pub mod limits;
