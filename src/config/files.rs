//! Values kept in files: URLs that are read again while a replica runs, and secrets.

use std::path::Path;

use super::{error::ConfigError, surroundings::Surroundings};

/// Keys whose value is read again while a replica runs, each with the key that names its file.
pub(super) const FILES: [(&str, &str); 2] =
    [("database_url", "database_url_file"), ("listener_database_url", "listener_database_url_file")];

/// A file's content, trimmed. An empty file is an error.
pub(super) fn held_in(
    path: &Path,
    source_name: String,
    around: &Surroundings,
) -> Result<String, ConfigError> {
    match std::fs::read_to_string(around.directory.join(path)) {
        Err(why) => Err(ConfigError::Unreadable { source_name, path: path.to_owned(), why }),
        Ok(text) if text.trim().is_empty() => {
            Err(ConfigError::Invalid { source_name, why: format!("{} is empty", path.display()) })
        }
        Ok(text) => Ok(text.trim().to_owned()),
    }
}
