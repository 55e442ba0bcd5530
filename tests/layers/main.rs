//! How the house is built: floors, no circles, one meaning a name. All of it is read from the sources as text.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod circles;
mod floors;
mod graph;
mod names;
mod source;
