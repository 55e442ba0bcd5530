//! Checks of a session: encoding, isolation level, read-only state, TLS, settings dropped by a pooler, schema.

use super::check::{Check, Severity, check, fine};
use crate::store::{pool::conn::Conn, upkeep::migrate::encoding};

/// Runs the checks on one session.
pub(super) async fn checks(conn: &mut Conn) -> Vec<Result<Check, sqlx::Error>> {
    vec![
        texts(conn).await,
        isolation(conn).await,
        writes(conn).await,
        tls(conn).await,
        settings(conn).await,
        Ok(schema(conn)),
    ]
}

async fn texts(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let encoding = encoding(conn).await?;
    Ok(match encoding.as_str() {
        "UTF8" => fine("encoding", encoding),
        _ => check(
            "encoding",
            Severity::Fault,
            encoding,
            "make a database with encoding 'UTF8' (template template0)",
        ),
    })
}

async fn isolation(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let level = sqlx::query_scalar!(r#"select current_setting('transaction_isolation') as "level!""#);
    let level = level.fetch_one(conn).await?;
    Ok(match level.as_str() {
        "read committed" => fine("isolation", level),
        _ => check(
            "isolation",
            Severity::Fault,
            level,
            "set it for the role: alter role … set default_transaction_isolation = 'read committed'",
        ),
    })
}

async fn writes(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let row = sqlx::query!(
        r#"select pg_is_in_recovery() as "is_standby!", current_setting('transaction_read_only')::bool as "is_read_only!""#
    )
    .fetch_one(conn)
    .await?;
    Ok(match (row.is_standby, row.is_read_only) {
        (true, _) => check(
            "writes",
            Severity::Fault,
            "refused: this is a standby",
            "point the database URL to the primary",
        ),
        (false, true) => check(
            "writes",
            Severity::Fault,
            "sessions are read-only",
            "unset default_transaction_read_only for this role and database",
        ),
        (false, false) => fine("writes", "accepted"),
    })
}

async fn tls(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select coalesce(s.ssl, false) as "is_used!", s.version as version, s.cipher as cipher,
               coalesce(inet_client_addr() <<= '127.0.0.0/8' or inet_client_addr() = '::1', true) as "is_local!"
          from (select pg_backend_pid() as pid) me left join pg_stat_ssl s on s.pid = me.pid
        "#
    )
    .fetch_one(conn)
    .await?;
    let (version, cipher) = (row.version.unwrap_or_default(), row.cipher.unwrap_or_default());
    Ok(match (row.is_used, row.is_local) {
        (true, _) => fine("tls", format!("{version}, {cipher}")),
        (false, true) => fine("tls", "none; the connection is local"),
        (false, false) => {
            let remedy =
                "add sslmode=verify-full and sslrootcert=… to the database URL if others share the network";
            check(
                "tls",
                Severity::Warning,
                "none: passwords and texts cross the network in the clear",
                remedy,
            )
        }
    })
}

async fn settings(conn: &mut Conn) -> Result<Check, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select current_setting('plan_cache_mode') = 'force_generic_plan' as "keeps_plans!",
               current_setting('statement_timeout') <> '0' as "has_timeouts!"
        "#
    )
    .fetch_one(conn)
    .await?;
    Ok(match (row.keeps_plans, row.has_timeouts) {
        (true, true) => fine("settings", "plans are kept, statements have a timeout"),
        _ => check(
            "settings",
            Severity::Warning,
            "a pooler drops the settings of lastword's sessions",
            "set them for the role: docs/OPERATING.md, Postgres, has the statements",
        ),
    })
}

fn schema(conn: &Conn) -> Check {
    let name = conn.schema.name();
    match conn.schema.is_first() {
        true => fine("schema", format!("{name}, made by an older release")),
        false => fine("schema", name),
    }
}
