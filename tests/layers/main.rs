//! The structure of the code: floors, no circles, one meaning for each type name. Everything is read from the sources
//! as text.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod circles;
mod floors;
mod graph;
mod names;
mod source;
