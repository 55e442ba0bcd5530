//! Running turns.

pub mod codec;
pub mod exit;
pub mod launch;
pub mod lifeline;
pub mod process;
pub mod shim;
mod stderr;
mod tree;
pub mod wire;
