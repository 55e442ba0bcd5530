//! Migrations: safe with many replicas starting at once, and with older ones still running.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, SqlSafeStr as _,
    migrate::{Migration, Migrator},
};

use crate::store::{
    error::StoreError,
    handle::Store,
    pool::{conn::Conn, schema::Schema, session::SessionPurpose},
};

static MIGRATIONS: Migrator = {
    let mut migrations = sqlx::migrate!();
    // An older replica still starts on a newer schema.
    migrations.ignore_missing = true;
    migrations
};

/// How much of this release's schema a database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// No migration was applied.
    Nothing,
    /// An older release's.
    Some,
    /// Every migration of this release.
    All,
}

impl Store {
    /// Brings the schema up to this release, and makes the schema where there is none. Takes an advisory lock; waits
    /// for whoever holds it. Refuses a database that is not UTF-8 before anything is changed.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let failed = |why| StoreError::from_sqlx("migrate", why);
        // Its own connection: a long migration must not meet the statement deadline. Past a pooler, as
        // the listener's: the lock is a session's, and is let go of on the backend that took it.
        let mut conn = self.listener_sessions().open("migrate", SessionPurpose::Work).await?;
        self.reachability().heard();
        let encoding = encoding(&mut conn).await.map_err(failed)?;
        if encoding != "UTF8" {
            let why =
                format!("the database's encoding is {encoding}: make one with encoding 'UTF8' (template0)");
            return Err(StoreError::Broken { op: "migrate", code: None, why });
        }
        if !conn.schema.is_first() {
            prepare(&mut conn).await.map_err(failed)?;
        }
        let schema = conn.schema.clone();
        migrations(&schema).run(&mut conn.bare).await.map_err(|why| match why {
            sqlx::migrate::MigrateError::Execute(why)
            | sqlx::migrate::MigrateError::ExecuteMigration(why, _) => StoreError::from_sqlx("migrate", why),
            other => StoreError::Broken { op: "migrate", code: None, why: other.to_string() },
        })
    }

    /// Whether a newer release has migrated this database: it may have written words that this one does not know.
    pub(in crate::store) async fn is_schema_newer(&self, conn: &mut Conn) -> Result<bool, StoreError> {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        let applied = applied(conn).await.map_err(|why| StoreError::from_sqlx("verify", why))?;
        Ok(applied.iter().any(|version| *version > newest))
    }

    /// Whether every migration of this release has been applied.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        Ok(self.extent().await? == Extent::All)
    }

    /// How much of this release's schema is there.
    pub(super) async fn extent(&self) -> Result<Extent, StoreError> {
        let mut lease = self.lease().await?;
        let applied = lease.run("is_migrated", applied).await?;
        Ok(match MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)) {
            true => Extent::All,
            false if applied.is_empty() => Extent::Nothing,
            false => Extent::Some,
        })
    }
}

/// The migrations, each of them run in the installation's schema.
fn migrations(schema: &Schema) -> Migrator {
    let place = format!("set local search_path = {}, pg_temp;\n", schema.name());
    let placed = |migration: &Migration| Migration {
        sql: AssertSqlSafe(format!("{place}{}", migration.sql.as_str())).into_sql_str(),
        ..migration.clone()
    };
    Migrator {
        migrations: MIGRATIONS.iter().map(placed).collect::<Vec<_>>().into(),
        ignore_missing: true,
        // The driver's lock is one for the whole database; replicas of older releases take it.
        locking: schema.is_first(),
        table_name: Cow::Owned(schema.migrations()),
        ..Migrator::DEFAULT
    }
}

/// The encoding of the database's texts.
pub(in crate::store) async fn encoding(conn: &mut Conn) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(r#"select current_setting('server_encoding') as "encoding!""#).fetch_one(conn).await
}

/// Makes the schema where there is none, and keeps others from migrating as long as this session lasts.
#[allow(clippy::disallowed_methods, reason = "the schema's name is no parameter")]
async fn prepare(conn: &mut Conn) -> Result<(), sqlx::Error> {
    let name = conn.schema.name().to_owned();
    let lock = format!("lastword migrations of {name}");
    sqlx::query!("select pg_advisory_lock(hashtextextended($1, 0))", lock).execute(&mut *conn).await?;
    let is_there = sqlx::query_scalar!(r#"select to_regnamespace($1) is not null as "is_there!""#, name);
    // Asked first: to make a schema takes a right that a role need not have where the schema is there.
    if !is_there.fetch_one(&mut *conn).await? {
        sqlx::raw_sql(AssertSqlSafe(format!("create schema {name}"))).execute(&mut *conn).await?;
    }
    Ok(())
}

/// The versions of the applied migrations; none where nothing is installed.
#[allow(clippy::disallowed_methods, reason = "the migration tool makes this table, not a migration")]
async fn applied(conn: &mut Conn) -> Result<Vec<i64>, sqlx::Error> {
    let table = conn.schema.migrations();
    let is_there = sqlx::query_scalar!(r#"select to_regclass($1) is not null as "is_there!""#, table);
    if !is_there.fetch_one(&mut *conn).await? {
        return Ok(Vec::new());
    }
    sqlx::query_scalar(AssertSqlSafe(format!("select version from {table} where success")))
        .fetch_all(conn)
        .await
}
