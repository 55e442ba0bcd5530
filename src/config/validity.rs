//! Checks of the whole configuration: values that parse, but that no replica should run with.

use super::{error::ConfigError, pass, schema, settings::Config};
use crate::{agent::is_label_value, units::Span};

impl Config {
    /// Refuses what no replica should run with.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] with the key and what to do.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, why: &str| Err(ConfigError::Refused { key, why: why.to_owned() });
        if self.database_url.is_empty() {
            return refuse("database_url", "is not set: set DATABASE_URL, or the key in lastword.toml");
        }
        if self.database_schema.as_deref().is_some_and(|name| !schema::is_name(name)) {
            return refuse(
                "database_schema",
                "must be 1 to 40 of a-z, 0-9 and _, no digit first, and not pg_…",
            );
        }
        self.validate_doors()?;
        if self.bodies_max.0 < self.body_max.0.max(Config::BATCH_BYTES_MAX) {
            return refuse("bodies_max", "must be at least 2MiB, and at least body_max");
        }
        for (key, limit) in [
            ("body_max", self.body_max.0),
            ("worker_file_max", self.worker_file_max.0),
            ("queue_max", self.queue_max.into()),
            ("conversation_depth_max", self.conversation_depth_max.into()),
            ("turns_max", self.turns_max.into()),
            ("pool_max", self.pool_max.into()),
            ("streams_max", self.streams_max.into()),
            ("connections_max", self.connections_max.into()),
            ("connections_per_address_max", self.connections_per_address_max.unwrap_or(1).into()),
            ("waits_max", self.waits_max.into()),
            ("unread_max", self.unread_max.0),
            ("token_rows_per_minute_max", self.token_rows_per_minute_max.into()),
        ] {
            if limit == 0 {
                return refuse(key, "must be at least 1");
            }
        }
        if self.workers_max.is_some_and(|max| max < self.turns_max) {
            let why = format!(
                "is below turns_max ({}): lower turns_max as well, since each turn may need a worker of its own",
                self.turns_max
            );
            return refuse("workers_max", &why);
        }
        if let Some(why) = pass::wrong_with(&self.worker_env_pass) {
            return refuse("worker_env_pass", &why);
        }
        if !(1..=100).contains(&self.token_share) {
            return refuse("token_share", "must lie between 1 and 100, in percent");
        }
        for (key, span) in [
            ("retain", self.retain),
            ("postgres_away_max", self.postgres_away_max),
            ("connection_idle_max", self.connection_idle_max),
            ("stream_stall_max", self.stream_stall_max),
        ] {
            if span < Span::seconds(1) {
                return refuse(key, "must be at least 1s");
            }
        }
        if self.kubernetes && !cfg!(feature = "kubernetes") {
            return refuse("kubernetes", "is not in this build: build it with the feature `kubernetes`");
        }
        if !is_label_value(&self.kubernetes_fleet) || self.kubernetes_fleet.is_empty() {
            return refuse(
                "kubernetes_fleet",
                "must be the value of a label: letters, digits, `-`, `_` and `.`",
            );
        }
        // Proxies cut silent streams at 60 s.
        if !(Span::seconds(1)..=Span::seconds(55)).contains(&self.keep_alive) {
            return refuse("keep_alive", "must lie between 1s and 55s");
        }
        Ok(())
    }
}
