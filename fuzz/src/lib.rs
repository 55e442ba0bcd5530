//! Properties that hold for any bytes: what the fuzz targets run for ever, and `tests/seeds.rs` once
//! over the seeds.
//!
//! Each module owns one kind of input and has one `check`, which panics where a property breaks. The
//! inputs are text as far as possible, so that a seed can be read and a finding becomes a seed.

pub mod cursors;
pub mod door;
pub mod frames;
pub mod lines;
pub mod requests;
pub mod specs;
