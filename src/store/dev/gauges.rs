//! What Postgres itself counts: statements, commits that wrote, bytes of WAL. For `lastword bench`.
//!
//! Owns one connection and reads only, but for switching `pg_stat_statements` on and off, whose
//! counting costs a little and so runs only while something is counted. Every statement of its own
//! bears a mark, and is left out of the counts.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{Row, postgres::PgRow};

use crate::store::{
    error::StoreError,
    handle::Store,
    pool::{conn::Conn, session::SessionPurpose},
};

/// Counts since some moment before; two of them make a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Statements that clients sent; `None` where Postgres does not count them.
    pub statements: Option<i64>,
    /// Transactions that got a number: they wrote something, or rang.
    pub writes: i64,
    /// Bytes of WAL.
    pub wal_bytes: i64,
}

impl Tally {
    /// What was counted between `before` and this one.
    pub fn since(self, before: Tally) -> Tally {
        Tally {
            statements: self.statements.zip(before.statements).map(|(now, then)| now - then),
            writes: self.writes - before.writes,
            wal_bytes: self.wal_bytes - before.wal_bytes,
        }
    }
}

/// A setting of Postgres, or something else worth knowing of it.
pub type Fact = (&'static str, String);

/// A connection that looks at what Postgres counts.
#[derive(Debug)]
pub struct Gauges {
    conn: Conn,
    counts_statements: bool,
}

/// How long a changed setting may take to be in force.
const RELOAD_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What decides how much a commit is worth, and what it costs.
const SETTINGS: [&str; 10] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
    "shared_preload_libraries",
];

impl Store {
    /// A connection that looks at what Postgres counts.
    pub async fn gauges(&self) -> Result<Gauges, StoreError> {
        Gauges::open(self).await.map_err(gauges)
    }
}

#[allow(clippy::disallowed_methods, reason = "views that the build's database lacks")]
impl Gauges {
    async fn open(store: &Store) -> Result<Gauges, sqlx::Error> {
        let mut conn =
            store.sessions().open("gauges", SessionPurpose::Work).await.map_err(StoreError::into_sqlx)?;
        let preloaded: String =
            sqlx::query_scalar("select /* lastword bench */ current_setting('shared_preload_libraries')")
                .fetch_one(&mut conn)
                .await?;
        let counts_statements = preloaded.contains("pg_stat_statements");
        if counts_statements {
            sqlx::raw_sql("create extension if not exists pg_stat_statements").execute(&mut conn).await?;
        }
        Ok(Gauges { conn, counts_statements })
    }

    /// Whether Postgres can count statements here.
    pub fn counts_statements(&self) -> bool {
        self.counts_statements
    }

    /// Has statements counted from now on, or no more. It is in force when this returns.
    pub async fn count_statements(&mut self, is_on: bool) -> Result<(), StoreError> {
        if !self.counts_statements {
            return Ok(());
        }
        let (change, wanted) = match is_on {
            true => ("alter system set pg_stat_statements.track = 'top'", "top"),
            false => ("alter system set pg_stat_statements.track = 'none'", "none"),
        };
        sqlx::query(change).execute(&mut self.conn).await.map_err(gauges)?;
        sqlx::query("select /* lastword bench */ pg_reload_conf()")
            .execute(&mut self.conn)
            .await
            .map_err(gauges)?;
        let in_force = async {
            loop {
                let now: String = sqlx::query_scalar(
                    "select /* lastword bench */ current_setting('pg_stat_statements.track')",
                )
                .fetch_one(&mut self.conn)
                .await?;
                if now == wanted {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match tokio::time::timeout(RELOAD_MAX, in_force).await {
            Ok(done) => done.map_err(gauges),
            Err(_) => {
                Err(StoreError::Away { op: "gauges", why: "a setting did not come into force".to_owned() })
            }
        }
    }

    /// The counts as of now.
    pub async fn tally(&mut self) -> Result<Tally, StoreError> {
        let row = sqlx::query(
            "select /* lastword bench */ pg_snapshot_xmax(pg_current_snapshot())::text::bigint as writes,
                    (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint as wal_bytes",
        );
        let read = |row: PgRow| Ok((row.try_get("writes")?, row.try_get("wal_bytes")?));
        let row = row.fetch_one(&mut self.conn).await.and_then(read).map_err(gauges)?;
        let (writes, wal_bytes) = row;
        Ok(Tally { statements: self.calls("%", "").await?, writes, wal_bytes })
    }

    /// How often statements were sent that are like the one pattern and not like the other (`ilike`);
    /// `None` where nobody counts them.
    pub async fn calls(&mut self, like: &str, unlike: &str) -> Result<Option<i64>, StoreError> {
        if !self.counts_statements {
            return Ok(None);
        }
        let calls = sqlx::query_scalar(
            "select /* lastword bench */ coalesce(sum(calls), 0)::bigint
               from pg_stat_statements s
              where s.dbid = (select d.oid from pg_database d where d.datname = current_database())
                and s.query ilike $1 and s.query not ilike $2
                and s.query not like '%/* lastword bench */%'
                and s.query not ilike 'alter system%'
                and s.query not ilike '%lastword_limits%'",
        );
        calls.bind(like).bind(unlike).fetch_one(&mut self.conn).await.map(Some).map_err(gauges)
    }

    /// How often each statement was sent, by the beginning of its text; empty where nobody counts.
    pub async fn calls_by_statement(&mut self) -> Result<BTreeMap<String, i64>, StoreError> {
        if !self.counts_statements {
            return Ok(BTreeMap::new());
        }
        let rows = sqlx::query(
            "select /* lastword bench */ left(regexp_replace(s.query, '\\s+', ' ', 'g'), 100) as query,
                    sum(s.calls)::bigint as calls
               from pg_stat_statements s
              where s.dbid = (select d.oid from pg_database d where d.datname = current_database())
                and s.query not like '%/* lastword bench */%'
                and s.query not ilike 'alter system%'
                and s.query not ilike '%lastword_limits%'
              group by 1",
        );
        let rows = rows.fetch_all(&mut self.conn).await.map_err(gauges)?;
        let read = |row: PgRow| Ok((row.try_get("query")?, row.try_get("calls")?));
        rows.into_iter().map(read).collect::<Result<_, _>>().map_err(gauges)
    }

    /// Updates of a table's rows so far, and how many of them touched no index.
    pub async fn updates(&mut self, table: &str) -> Result<(i64, i64), StoreError> {
        let row = sqlx::query(
            "select /* lastword bench */ n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = to_regclass('lastword.' || $1)",
        );
        let read = |row: PgRow| Ok((row.try_get("n_tup_upd")?, row.try_get("n_tup_hot_upd")?));
        row.bind(table).fetch_one(&mut self.conn).await.and_then(read).map_err(gauges)
    }

    /// Bytes of each table that grows with turns, indexes and all; the days of the log together.
    pub async fn sizes(&mut self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(
            "select /* lastword bench */ split_part(c.relname, '_2', 1) as name,
                    sum(pg_total_relation_size(c.oid))::bigint as bytes
               from pg_class c
              where c.relkind = 'r' and c.relnamespace = (select relnamespace from pg_class where oid = 'lastword.turns'::regclass)
                and (c.relname in ('turns', 'conversations', 'idempotency', 'not_completed', 'commands', 'workers')
                  or c.relname like 'turn_events_%')
              group by 1 order by 2 desc, 1",
        );
        let rows = rows.fetch_all(&mut self.conn).await.map_err(gauges)?;
        let read = |row: PgRow| Ok((row.try_get("name")?, row.try_get("bytes")?));
        let mut sizes: Vec<(String, i64)> =
            rows.into_iter().map(read).collect::<Result<_, _>>().map_err(gauges)?;
        // Always in one order, whichever is the largest just now.
        sizes.sort();
        Ok(sizes)
    }

    /// What this Postgres is, and how durable.
    pub async fn facts(&mut self) -> Result<Vec<Fact>, StoreError> {
        let mut facts = Vec::with_capacity(SETTINGS.len());
        for name in SETTINGS {
            let value: Option<String> =
                sqlx::query_scalar("select /* lastword bench */ current_setting($1, true)")
                    .bind(name)
                    .fetch_one(&mut self.conn)
                    .await
                    .map_err(gauges)?;
            facts.push((name, value.unwrap_or_default()));
        }
        Ok(facts)
    }
}

fn gauges(why: sqlx::Error) -> StoreError {
    StoreError::from_sqlx("gauges", why)
}
