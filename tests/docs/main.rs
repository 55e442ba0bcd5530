//! What the documents say that can be checked: pages and links, names, commands.
//!
//! A page is checked as its readers use it: commands are parsed by the program that they call, and those of the first
//! hour are run; names are looked up where they mean something.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod commands;
mod named_tests;
mod names;
mod reading;
mod run;
mod site;
