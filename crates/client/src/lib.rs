//! A client of lastword's HTTP API.
//!
//! [`gateway`] is one request, to several base URLs of equal replicas. [`follow`] is the reference client of a turn: it reads
//! the turn's events to the last word, over whichever replica answers, and skips and repeats none.

pub mod follow;
pub mod gateway;
