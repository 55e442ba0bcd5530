//! Migrations: safe with many replicas starting at once, and with older ones still running.

use sqlx::{ConnectOptions, migrate::Migrator};

use super::{Store, StoreError};

static MIGRATIONS: Migrator = {
    let mut migrations = sqlx::migrate!();
    // An older replica still starts on a newer schema.
    migrations.ignore_missing = true;
    migrations
};

impl Store {
    /// Brings the schema up to this release. Takes an advisory lock; waits for whoever holds it.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // Its own connection: a long migration must not meet the statement deadline. Past a pooler, as
        // the listener's: the lock is a session's, and is let go of on the backend that took it.
        let connected = self.listener_options.connect().await;
        let mut conn = connected.map_err(|why| StoreError::from_sqlx("migrate", why))?;
        MIGRATIONS.run(&mut conn).await.map_err(|why| match why {
            sqlx::migrate::MigrateError::Execute(why) => StoreError::from_sqlx("migrate", why),
            other => StoreError::Broken { op: "migrate", code: None, why: other.to_string() },
        })
    }

    /// Whether a newer release has migrated this database: it may have written words that this one does not know.
    pub(super) async fn is_schema_newer(&self, conn: &mut sqlx::PgConnection) -> Result<bool, StoreError> {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        // Not checked at build time: the migration tool makes this table, not a migration.
        #[allow(clippy::disallowed_methods, reason = "inside the store")]
        let is_newer = sqlx::query_scalar("select exists (select from _sqlx_migrations where version > $1)");
        is_newer.bind(newest).fetch_one(conn).await.map_err(|why| StoreError::from_sqlx("verify", why))
    }

    /// Whether every migration of this release has been applied.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let there = lease
            .run("is_migrated", |c| {
                sqlx::query_scalar!(r#"select to_regclass('_sqlx_migrations') is not null as "is!""#)
                    .fetch_one(c)
            })
            .await?;
        if !there {
            return Ok(false);
        }
        // Not checked at build time: the migration tool makes this table, not a migration.
        #[allow(clippy::disallowed_methods, reason = "inside the store")]
        let applied: Vec<i64> = lease
            .run("is_migrated", |c| {
                sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(c)
            })
            .await?;
        Ok(MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)))
    }
}
