//! How sessions with Postgres begin: their settings, and the schema that their statements go to.
//!
//! Settings are part of a session's start and never a `SET`: behind a transaction pooler a `SET` stays on a backend
//! that serves other programs next. A pooler that refuses them is connected to without them; the settings of the role
//! stand in for them there (`docs/OPERATING.md`).

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

/// Left to itself Postgres plans the hot statements anew each time, which takes longer than to carry them
/// out; and it reads the whole of a small table, all that vacuum has not removed from it included: under a
/// long transaction elsewhere that is all of its past.
const PLANS: [(&str, &str); 4] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];
/// Statements name their schema: what others call as a table or a function of ours is called is not meant.
const SEARCH_PATH: (&str, &str) = ("search_path", "pg_catalog");
/// What each statement is written for, whatever the role's default is.
const ISOLATION: (&str, &str) = ("default_transaction_isolation", "read committed");
/// Postgres ends a session whose client was cut off: what the client held is free soon.
const CUT_OFF: [(&str, &str); 3] =
    [("client_connection_check_interval", "2s"), ("tcp_keepalives_idle", "10s"), ("tcp_user_timeout", "15s")];
/// What a session is for. Statements with a deadline have the deadline in Postgres too, a little sooner than in this
/// process: the connection is then as good as before, and nothing is under way that nobody waits for.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum SessionPurpose {
    /// The hot statements, each with this deadline.
    Pool(Duration),
    /// A task's own session, whose statements have this deadline.
    Task(Duration),
    /// Work that takes as long as the database is large.
    Work,
}

/// The sessions of one process with one address.
#[derive(Debug)]
pub(in crate::store) struct Sessions {
    login: Arc<Login>,
    keeps_plans: bool,
    choice: Arc<Choice>,
    /// Whether the other side takes no settings at a session's start.
    is_bare: AtomicBool,
}

impl Sessions {
    pub(in crate::store) fn new(login: Arc<Login>, keeps_plans: bool, choice: Arc<Choice>) -> Sessions {
        Sessions { login, keeps_plans, choice, is_bare: AtomicBool::new(false) }
    }

    /// A new session, in the schema of the installation.
    pub(in crate::store) async fn open(
        &self,
        op: &'static str,
        purpose: SessionPurpose,
    ) -> Result<Conn, StoreError> {
        self.begin(op, purpose, false).await
    }

    /// The same for the beat, which others wait for.
    pub(in crate::store) async fn open_first(
        &self,
        op: &'static str,
        purpose: SessionPurpose,
    ) -> Result<Conn, StoreError> {
        self.begin(op, purpose, true).await
    }

    /// A connection that hears, whose statements have this deadline.
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

    /// Why logins are refused, where they are.
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

    /// Sessions begin without settings from now on: they were refused for them.
    fn note(&self, why: &StoreError) {
        if !self.is_bare.swap(true, Ordering::Relaxed) {
            tracing::info!(%why, "sessions begin without settings of their own: give them to the role");
        }
    }

    /// How to begin a session. What the URL sets itself stays.
    fn settled(&self, purpose: SessionPurpose, is_bare: bool, options: PgConnectOptions) -> PgConnectOptions {
        if is_bare {
            return options;
        }
        let given = options.get_options().unwrap_or_default().to_owned();
        let is_free = |name: &str| !given.contains(&format!("{name}="));
        let mut settings: Vec<(&str, String)> = Vec::new();
        if matches!(purpose, SessionPurpose::Pool(_)) && self.keeps_plans {
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

    /// The schema of the installation, as a session sees it.
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
