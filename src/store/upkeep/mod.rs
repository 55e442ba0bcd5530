//! Maintenance of an installation: migrations, partitions, sweeps, and checks for operators.

mod bounds;
pub mod doctor;
pub mod migrate;
pub mod partitions;
pub mod sweep;
pub mod verify;
