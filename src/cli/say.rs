//! What a command says to the person who called it.
//!
//! Keeps the rule that nothing from outside steers a terminal: a name, an error, a log's end may hold what a
//! worker or another client wrote. Control characters and what turns the direction of text are shown as
//! escapes, into a file too, since a file is looked at later. What programs read (JSON, TOML) and an agent's
//! answer have ways of their own.

use std::io::{self, Write};

use crate::{secret, text};

/// Says a line on stdout, as `println!` does.
#[macro_export]
macro_rules! say {
    () => { $crate::cli::say::line_out("") };
    ($($what:tt)+) => { $crate::cli::say::line_out(&format!($($what)+)) };
}

/// Says a line on stderr, as `eprintln!` does.
#[macro_export]
macro_rules! note {
    ($($what:tt)+) => { $crate::cli::say::line_err(&format!($($what)+)) };
}

/// A line on stdout. One that nobody reads any more is no fault.
pub fn line_out(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{}", text::visible(line));
}

/// A line on stderr, without what looks like a secret: errors quote what they met.
pub fn line_err(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", text::visible(&secret::hidden(line)));
}
