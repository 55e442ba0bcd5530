//! The base of development and tests: a private [`postgres`], [`child`] processes that never outlive their parent, and
//! the [`signals`] that ask a command to stop.
//!
//! Knows nothing of the gateway. Used by `lastword dev`, the bench and the test suites; images of the gateway do not
//! contain it.

pub mod child;
pub mod postgres;
pub mod signals;
