//! The doctor's checks: what in this Postgres would make the gateway slow or wrong.
//!
//! Owns the checks and their remedies. Only reads, and sends one NOTIFY on a channel of its own.

mod check;
mod session;

use std::time::{Duration, Instant};

pub use self::check::{Check, Severity};
use self::check::{check, fine};
use super::migrate::Extent;
use crate::{
    config::Config,
    store::{
        error::StoreError,
        handle::Store,
        pool::{conn::Conn, session::SessionPurpose},
    },
};

/// Connections of a replica outside its pool: beat, listener, notify sender.
const CONNECTIONS_RESERVED: i64 = 3;
/// Deadline of a check.
const CHECK_MAX: Duration = Duration::from_secs(10);
const NOTIFY_MAX: Duration = Duration::from_secs(2);
const SKEW_MAX_S: f64 = 1.0;
const TRANSACTION_MAX_S: f64 = 300.0;

impl Store {
    /// Runs every check that this Postgres permits.
    pub async fn examine(&self, config: &Config) -> Vec<Check> {
        let mut conn = match self.sessions().open("connect", SessionPurpose::Pool(CHECK_MAX)).await {
            Ok(conn) => conn,
            Err(why) => return vec![shut_out(&why)],
        };
        let extent = self.extent().await;
        // If nothing is installed that alone is the fault: there are no tables to query.
        let has_tables = !matches!(extent, Ok(Extent::Nothing));
        let mut checks = vec![migrations(extent)];
        let mut results = session::checks(&mut conn).await;
        results.extend([
            version(&mut conn).await,
            oldest_transaction(&mut conn).await,
            clock_skew(&mut conn, self).await,
            pooler(&mut conn).await,
            self.notify(&mut conn).await,
        ]);
        if has_tables {
            checks.push(self.lost_commits().await);
            results.extend([connections(&mut conn, config).await, partitions(&mut conn).await]);
        }
        for result in results {
            checks.push(result.unwrap_or_else(|why| {
                check("postgres", Severity::Fault, why.to_string(), "look into Postgres' log")
            }));
        }
        checks
    }

    /// Whether a failover ever lost commits, and whether such a loss could be detected.
    async fn lost_commits(&self) -> Check {
        let remedy = "a standby without the newest commits was promoted: use a synchronous standby, or accept the loss";
        match (self.timeline().await, self.losses().await) {
            (Ok(timeline), Ok(losses)) if losses.turns == 0 && timeline > 0 => {
                fine("lost commits", format!("none noticed; timeline {timeline}"))
            }
            (Ok(_), Ok(losses)) if losses.turns > 0 => {
                let (turns, events, vanished) = (losses.turns, losses.events, losses.vanished);
                let finding = format!("{turns} turns lost commits: {events} events, {vanished} whole turns");
                check("lost commits", Severity::Warning, finding, remedy)
            }
            (Ok(_), Ok(_)) => {
                let remedy = "let this role call pg_current_wal_lsn(): otherwise no failover is noticed";
                check(
                    "lost commits",
                    Severity::Warning,
                    "the timeline of this Postgres cannot be read",
                    remedy,
                )
            }
            (Err(why), _) | (_, Err(why)) => {
                check("lost commits", Severity::Fault, why.to_string(), "look into Postgres' log")
            }
        }
    }

    /// Whether a NOTIFY arrives, and how fast. A transaction pooler accepts LISTEN and delivers nothing.
    async fn notify(&self, conn: &mut Conn) -> Result<Check, sqlx::Error> {
        const CHANNEL: &str = "lastword_doctor";
        let remedy =
            "point LASTWORD_LISTENER_DATABASE_URL past the pooler, or set LASTWORD_DOORBELL=off (slower)";
        let mut listener = match self.listener_sessions().listener("notify", CHECK_MAX).await {
            Ok(listener) => listener,
            Err(why) => return Ok(shut_out(&why)),
        };
        listener.listen(CHANNEL).await?;
        let started = Instant::now();
        sqlx::query!("select pg_notify($1, '')::text as rung", CHANNEL).fetch_one(conn).await?;
        Ok(match tokio::time::timeout(NOTIFY_MAX, listener.try_recv()).await {
            Ok(Ok(Some(_))) => {
                let ms = started.elapsed().as_secs_f64() * 1e3;
                let finding = format!("arrives after {ms:.1} ms");
                if ms < 100.0 {
                    fine("notify", finding)
                } else {
                    check("notify", Severity::Warning, finding, remedy)
                }
            }
            _ => check("notify", Severity::Fault, "is not delivered", remedy),
        })
    }
}

fn migrations(extent: Result<Extent, StoreError>) -> Check {
    let missing = |finding| check("migrations", Severity::Fault, finding, "run `lastword migrate`");
    match extent {
        Ok(Extent::All) => fine("migrations", "all applied"),
        Ok(Extent::Some) => missing("some are missing"),
        Ok(Extent::Nothing) => missing("none applied: this database has no lastword tables"),
        Err(why) => check("migrations", Severity::Fault, why.to_string(), "look into Postgres' log"),
    }
}

async fn version(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let number = sqlx::query_scalar!(r#"select current_setting('server_version_num')::int as "n!""#)
        .fetch_one(conn)
        .await?;
    let finding = format!("PostgreSQL {}", number / 10_000);
    Ok(if number >= 150_000 {
        fine("version", finding)
    } else {
        check("version", Severity::Fault, finding, "use PostgreSQL 15 or later")
    })
}

async fn connections(conn: &mut Conn, config: &Config) -> Result<Check, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select current_setting('max_connections')::bigint
               - current_setting('superuser_reserved_connections')::bigint as "free_for_us!",
               (select count(*) from pg_stat_activity where backend_type = 'client backend') as "used!",
               (select count(*) from lastword.replicas where gone_at is null) as "replicas!"
        "#
    )
    .fetch_one(conn)
    .await?;
    let per_replica = i64::from(config.pool_max) + CONNECTIONS_RESERVED;
    let wanted = per_replica * row.replicas.max(2);
    let finding = format!(
        "{} of {} in use; a replica takes up to {per_replica}, {} replicas up to {wanted}",
        row.used,
        row.free_for_us,
        row.replicas.max(2)
    );
    let remedy = "raise max_connections, or lower LASTWORD_POOL_MAX";
    Ok(if wanted > row.free_for_us {
        check("connections", Severity::Fault, finding, remedy)
    } else if wanted * 2 > row.free_for_us {
        // A rolling update runs old and new replicas side by side.
        check("connections", Severity::Warning, finding, remedy)
    } else {
        fine("connections", finding)
    })
}

async fn oldest_transaction(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let seconds = sqlx::query_scalar!(
        r#"
        select case when pg_has_role(current_user, 'pg_read_all_stats', 'usage')
               then coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float8 end as seconds
          from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
        "#
    )
    .fetch_one(conn)
    .await?;
    let Some(seconds) = seconds else {
        // Forgotten sessions mostly belong to people or backups, under other roles.
        return Ok(fine(
            "oldest transaction",
            "unknown: other roles' transactions are visible with pg_read_all_stats only",
        ));
    };
    let finding = format!("{seconds:.0} s old");
    Ok(if seconds < TRANSACTION_MAX_S {
        fine("oldest transaction", finding)
    } else {
        let remedy =
            "end the transaction (see pg_stat_activity): meanwhile vacuum cannot clean up the busiest tables";
        check("oldest transaction", Severity::Warning, finding, remedy)
    })
}

async fn clock_skew(conn: &mut Conn, store: &Store) -> Result<Check, sqlx::Error> {
    let started = Instant::now();
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(conn).await?;
    let took = started.elapsed();
    store.clock().set_database_time(now);
    let skew = store.clock().offset_seconds();
    let finding = format!("{skew:+.3} s (asked in {:.1} ms)", took.as_secs_f64() * 1e3);
    Ok(if skew.abs() <= SKEW_MAX_S {
        fine("clock skew", finding)
    } else {
        // The gateway decides nothing by this machine's clock, but logs of several machines are compared.
        check("clock skew", Severity::Warning, finding, "synchronise this machine's clock")
    })
}

async fn partitions(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let days = sqlx::query_scalar!(
        r#"
        select (coalesce(max(day), '-infinity'::date) - (clock_timestamp() at time zone 'UTC')::date) as days
          from lastword.lw_partitions having max(day) is not null
        "#
    )
    .fetch_optional(conn)
    .await?
    .flatten();
    let finding = format!("made for {} days ahead", days.unwrap_or(-1));
    Ok(match days {
        Some(1..) => fine("partitions", finding),
        Some(0) => check(
            "partitions",
            Severity::Warning,
            finding,
            "a running replica makes partitions; look into its log",
        ),
        _ => check(
            "partitions",
            Severity::Fault,
            finding,
            "start a replica, which makes partitions: without them no turn can be accepted",
        ),
    })
}

/// Detects a transaction pooler: the backend's process id changes between statements.
async fn pooler(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let mut backends = std::collections::HashSet::new();
    for _ in 0..5 {
        backends
            .insert(sqlx::query_scalar!(r#"select pg_backend_pid() as "pid!""#).fetch_one(&mut *conn).await?);
    }
    // Startup parameters are lost if a pooler does not pass them on.
    let path =
        sqlx::query_scalar!(r#"select current_setting('search_path') as "path!""#).fetch_one(conn).await?;
    Ok(if backends.len() == 1 && path == "pg_catalog" {
        fine("pooler", "none seen, or one in session mode")
    } else {
        let remedy = "set LASTWORD_LISTENER_DATABASE_URL to a URL past the pooler";
        check("pooler", Severity::Warning, "seen, apparently in transaction mode", remedy)
    })
}

/// The check for a failed connection.
fn shut_out(why: &StoreError) -> Check {
    let remedy = why.remedy().unwrap_or("check the database URL, and that Postgres runs and can be reached");
    check("postgres", Severity::Fault, why.to_string(), remedy)
}
