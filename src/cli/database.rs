//! Finds the database of a command: from the flag, the environment, or a running `dev`'s directory.

use std::path::PathBuf;

use anyhow::Context;

use crate::{
    config::{Config, Overrides},
    store::{Store, StoreError},
};

/// Flags of the commands that look into the database.
#[derive(Debug, clap::Args)]
pub struct DatabaseArgs {
    /// URL of the database; better given in DATABASE_URL or LASTWORD_DATABASE_URL_FILE
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Directory of a running `lastword dev`
    #[arg(long, value_name = "DIR", conflicts_with = "database_url")]
    data: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The configuration with that database.
    ///
    /// # Errors
    /// No database is named, or the directory is not that of a running `dev`.
    pub fn config(&self) -> anyhow::Result<Config> {
        let database_url = match &self.data {
            Some(dir) => Some(of_dev(dir)?),
            None => self.database_url.clone(),
        };
        Ok(Config::load(Overrides { database_url, ..Overrides::default() })?)
    }

    /// A store on that database.
    ///
    /// # Errors
    /// As for [`DatabaseArgs::config`], or an invalid URL.
    pub fn store(&self) -> anyhow::Result<Store> {
        Store::open(&self.config()?).map_err(explained)
    }
}

/// A database error as one message: the cause and, if one is known, the remedy.
pub(super) fn explained(why: StoreError) -> anyhow::Error {
    match why.denial() {
        Some(denial) => anyhow::anyhow!("{why}\n  → {}", denial.remedy),
        None => why.into(),
    }
}

fn of_dev(dir: &std::path::Path) -> anyhow::Result<String> {
    let file = dir.join("dev.json");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{}: no `lastword dev` runs there", file.display()))?;
    let facts: serde_json::Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let url = facts.get("database_url").and_then(|url| url.as_str());
    url.map(str::to_owned).with_context(|| format!("{}: names no database", file.display()))
}
