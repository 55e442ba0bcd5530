//! Sessions with Postgres: their settings, and the schema of their statements.
//!
//! Settings are startup parameters, never a `SET`: behind a transaction pooler a `SET` would leak to other clients of
//! the backend. If a pooler rejects the parameters, sessions start without them, and the role's settings apply
//! (`docs/OPERATING.md`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::postgres::{PgConnectOptions, PgListener};

use super::{
    conn::Conn,
    denial::Denial,
    login::{Login, SETTING_REFUSED},
    schema::{Choice, Schema},
};
use crate::store::error::StoreError;

/// By default Postgres plans the hot statements on each execution, which takes longer than the execution itself. It
/// also scans small tables sequentially, including all dead rows: under a long foreign transaction these are the
/// table's entire past.
const PLANS: [(&str, &str); 4] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];
/// Statements qualify every name, so that foreign tables and functions of the same name are not used.
const SEARCH_PATH: (&str, &str) = ("search_path", "pg_catalog");
/// Every statement is written for this level, whatever the role's default.
const ISOLATION: (&str, &str) = ("default_transaction_isolation", "read committed");
/// Postgres ends the session of an unreachable client, so that its locks are released soon.
const CUT_OFF: [(&str, &str); 3] =
    [("client_connection_check_interval", "2s"), ("tcp_keepalives_idle", "10s"), ("tcp_user_timeout", "15s")];
/// What a session is for. Postgres enforces each deadline slightly earlier than this process: the connection stays
/// usable, and no abandoned statement keeps running.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum SessionPurpose {
    /// The pool's statements, with this deadline each.
    Pool(Duration),
    /// A task's own session, with this deadline per statement.
    Task(Duration),
    /// Maintenance work that grows with the database: no deadline.
    Work,
}

/// Opens sessions for one login.
#[derive(Debug)]
pub(in crate::store) struct Sessions {
    login: Arc<Login>,
    choice: Arc<Choice>,
    /// Whether startup parameters were rejected, so that sessions start without them.
    is_bare: AtomicBool,
}

impl Sessions {
    pub(in crate::store) fn new(login: Arc<Login>, choice: Arc<Choice>) -> Sessions {
        Sessions { login, choice, is_bare: AtomicBool::new(false) }
    }

    /// Opens a session in the installation's schema.
    pub(in crate::store) async fn open(
        &self,
        op: &'static str,
        purpose: SessionPurpose,
    ) -> Result<Conn, StoreError> {
        self.begin(op, purpose, false).await
    }

    /// As [`Sessions::open`], for the beat: others wait until the beat is connected.
    pub(in crate::store) async fn open_first(
        &self,
        op: &'static str,
        purpose: SessionPurpose,
    ) -> Result<Conn, StoreError> {
        self.begin(op, purpose, true).await
    }

    /// Opens a LISTEN connection whose statements have this deadline.
    pub(in crate::store) async fn listener(
        &self,
        op: &'static str,
        deadline: Duration,
    ) -> Result<PgListener, StoreError> {
        loop {
            let is_bare = self.is_bare.load(Ordering::Relaxed);
            let settle = |options| self.settled(SessionPurpose::Task(deadline), is_bare, options);
            match self.login.listener(op, &settle).await {
                Err(why) if !is_bare && is_refused(&why) => self.note(&why),
                other => return other,
            }
        }
    }

    /// Why logins are rejected; `None` if they are not.
    pub(in crate::store) fn refusal(&self) -> Option<Denial> {
        self.login.refusal()
    }

    async fn begin(
        &self,
        op: &'static str,
        purpose: SessionPurpose,
        is_hurried: bool,
    ) -> Result<Conn, StoreError> {
        let mut bare = loop {
            let is_bare = self.is_bare.load(Ordering::Relaxed);
            let settle = |options| self.settled(purpose, is_bare, options);
            match self.login.connect(op, is_hurried, &settle).await {
                Err(why) if !is_bare && is_refused(&why) => self.note(&why),
                other => break other?,
            }
        };
        let schema = self.choice.of(&mut bare).await.map_err(|why| StoreError::from_sqlx(op, why))?;
        Ok(Conn { bare, schema })
    }

    /// Notes that startup parameters were rejected: later sessions start without them.
    fn note(&self, why: &StoreError) {
        if !self.is_bare.swap(true, Ordering::Relaxed) {
            tracing::info!(%why, "the session settings are rejected at login: set them for the role");
        }
    }

    /// Adds the settings of a session. Settings in the URL take precedence.
    fn settled(&self, purpose: SessionPurpose, is_bare: bool, options: PgConnectOptions) -> PgConnectOptions {
        if is_bare {
            return options;
        }
        let given = options.get_options().unwrap_or_default().to_owned();
        let is_free = |name: &str| !given.contains(&format!("{name}="));
        let mut settings: Vec<(&str, String)> = Vec::new();
        if matches!(purpose, SessionPurpose::Pool(_)) {
            settings.extend(PLANS.map(|(name, value)| (name, value.to_owned())));
        }
        settings.push((ISOLATION.0, ISOLATION.1.to_owned()));
        settings.extend(CUT_OFF.map(|(name, value)| (name, value.to_owned())));
        let statement_max = match purpose {
            SessionPurpose::Pool(max) | SessionPurpose::Task(max) => {
                settings.push((SEARCH_PATH.0, SEARCH_PATH.1.to_owned()));
                max
            }
            SessionPurpose::Work => Duration::ZERO,
        };
        let timeouts = [
            ("statement_timeout", statement_max * 9 / 10),
            ("lock_timeout", statement_max / 2),
            ("idle_in_transaction_session_timeout", statement_max * 2),
        ];
        settings.extend(timeouts.map(|(name, max)| (name, format!("{}ms", max.as_millis()))));
        settings.retain(|(name, _)| is_free(name));
        options.options(settings)
    }

    /// The schema that this connection's statements use.
    pub(in crate::store) async fn schema<'c, C>(&self, conn: C) -> Result<Schema, sqlx::Error>
    where
        C: sqlx::Executor<'c, Database = sqlx::Postgres>,
    {
        self.choice.of(conn).await
    }
}

fn is_refused(why: &StoreError) -> bool {
    matches!(why, StoreError::Broken { code: Some(code), .. } if SETTING_REFUSED.contains(&code.as_str()))
}
