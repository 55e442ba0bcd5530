//! Why there is no configuration, naming where the value came from.

use std::path::PathBuf;

use crate::secret;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that is named cannot be read.
    #[error("{source_name}: cannot read {}: {why}", secret::suspected(&path.display().to_string()))]
    Unreadable {
        /// Who named the file.
        source_name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: line {line}: {why}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What; the line itself is not shown, since a password may stand in it.
        why: String,
    },
    /// A key or variable that does not exist.
    #[error("{source_name}: unknown{}", nearest.as_ref().map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// `file: key`, or the variable.
        source_name: String,
        /// The nearest one that does.
        nearest: Option<String>,
    },
    /// A value that means nothing.
    #[error("{source_name}: {}", secret::suspected(why))]
    Invalid {
        /// `file: key`, or the variable.
        source_name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A variable of ours that is not text.
    #[error("{variable}: is not UTF-8")]
    NotText {
        /// The variable.
        variable: String,
    },
    /// Values that parse, and that no replica should run with.
    #[error("{key} {why}")]
    Refused {
        /// The key.
        key: &'static str,
        /// Why, and what to do.
        why: String,
    },
}
