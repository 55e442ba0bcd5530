//! What development and tests stand on: a private [`postgres`], [`child`] processes that never outlive their parent, and
//! the [`signals`] that ask a command to stop.
//!
//! Knows nothing of the gateway. `lastword dev`, the bench and the test suites use it; no image of the gateway has it.

pub mod child;
pub mod postgres;
pub mod signals;
