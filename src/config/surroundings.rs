//! The variables and the directory that a configuration is read from.

use std::{ffi::OsString, path::PathBuf};

use super::{error::ConfigError, kept, settings::KEYS, shape::PREFIX};

/// The environment of a process, passed in so that tests need not change their own.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Our variables, and the customary ones of [`super::keys`].
    pub(super) variables: Vec<(String, String)>,
    /// The base of relative paths.
    pub(super) directory: PathBuf,
}

impl Surroundings {
    /// The surroundings of this process.
    ///
    /// # Errors
    /// A variable of ours that is not UTF-8.
    pub fn of_this_process() -> Result<Self, ConfigError> {
        Self::new(kept::variables(), PathBuf::new())
    }

    /// These variables; `directory` holds `lastword.toml` and is the base of relative paths.
    ///
    /// # Errors
    /// A variable of ours that is not UTF-8.
    pub fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        directory: impl Into<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let mut ours = Vec::new();
        for (name, value) in variables {
            // A name that is not UTF-8 cannot be ours.
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(PREFIX) && !KEYS.iter().any(|key| key.foreign == Some(name.as_str())) {
                continue;
            }
            let value = value.into_string().map_err(|_| ConfigError::NotText { variable: name.clone() })?;
            ours.push((name, value));
        }
        Ok(Surroundings { variables: ours, directory: directory.into() })
    }

    /// A variable's value; an empty one counts as not set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(n, _)| n == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }
}
