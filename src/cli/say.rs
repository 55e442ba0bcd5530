//! Output of commands for the person at the terminal.
//!
//! Nothing from outside may steer a terminal: a name, an error or a log may contain text of a worker or another
//! client. So control characters and direction marks are escaped, even in a file, since a file is displayed later.
//! Output for programs (JSON, TOML) and an agent's answer are written elsewhere.

use std::io::{self, Write};

use crate::{secret, text};

/// Prints a line on stdout, like `println!`.
#[macro_export]
macro_rules! say {
    () => { $crate::cli::say::line_out("") };
    ($($what:tt)+) => { $crate::cli::say::line_out(&format!($($what)+)) };
}

/// Prints a line on stderr, like `eprintln!`.
#[macro_export]
macro_rules! note {
    ($($what:tt)+) => { $crate::cli::say::line_err(&format!($($what)+)) };
}

/// Prints a line on stdout. A closed stdout is no error.
pub fn line_out(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{}", text::visible(line));
}

/// Prints a line on stderr with secrets hidden, since errors quote their input.
pub fn line_err(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", text::visible(&secret::hidden(line)));
}
