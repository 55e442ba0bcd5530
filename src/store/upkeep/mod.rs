//! What keeps an installation well: migrations, partitions, sweeps, and what operators ask.

mod bounds;
pub mod doctor;
pub mod migrate;
pub mod partitions;
pub mod sweep;
pub mod verify;
