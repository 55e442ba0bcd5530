//! Configuration errors; each names the source of the value.

use std::path::PathBuf;

use crate::secret;

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A named file cannot be read.
    #[error("{source_name}: cannot read {}: {why}", secret::suspected(&path.display().to_string()))]
    Unreadable {
        /// The flag, key or variable that named the file.
        source_name: String,
        /// The file.
        path: PathBuf,
        /// The system's error.
        why: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: line {line}: {why}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The error. The line itself is not shown, since it may contain a password.
        why: String,
    },
    /// An unknown key or variable.
    #[error("{source_name}: unknown{}", nearest.as_ref().map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// `file: key`, or the variable.
        source_name: String,
        /// The nearest known name, if any is close.
        nearest: Option<String>,
    },
    /// An invalid value.
    #[error("{source_name}: {}", secret::suspected(why))]
    Invalid {
        /// `file: key`, or the variable.
        source_name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A variable of ours that is not UTF-8.
    #[error("{variable}: is not UTF-8")]
    NotText {
        /// The variable.
        variable: String,
    },
    /// Values that parse, but that no replica should run with.
    #[error("{key} {why}")]
    Refused {
        /// The key.
        key: &'static str,
        /// The reason, and what to do.
        why: String,
    },
}
