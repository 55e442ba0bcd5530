//! What can go wrong between this process and Postgres.
//!
//! Owns the line between "away" (the outcome is unknown, or Postgres cannot serve; repeat later), "denied" (it does
//! not let this process in, and no wait heals that: away for those that run, the end for one that starts)
//! and "broken" (it answered, and repeating gives the same). Judged by SQLSTATE, never by text.

use super::pool::denial::{self, Denial};
use crate::telemetry::metrics;

/// A statement that did not do what it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, cannot serve, or did not answer; the outcome is unknown.
    #[error("{op}: Postgres is away: {why}")]
    Away {
        /// Which statement.
        op: &'static str,
        /// What the driver said.
        why: String,
    },
    /// Somebody else held a row or a table for longer than a statement waits. Nothing was done.
    #[error("{op}: a row or a table is locked by somebody else: {why}")]
    Held {
        /// Which statement.
        op: &'static str,
        /// What the driver said.
        why: String,
    },
    /// Postgres does not let this process in, or not do this; somebody must put that right.
    #[error("{op}: {denial}: {why}")]
    Denied {
        /// Which statement.
        op: &'static str,
        /// What is wrong, and its remedy.
        denial: Denial,
        /// What the driver said.
        why: String,
    },
    /// A rule of ours refused, by one of our own SQLSTATEs.
    #[error("{op}: refused with {code}")]
    Refused {
        /// Which statement.
        op: &'static str,
        /// `LW404`, `LW409`, `LW422` or `LW429`.
        code: String,
        /// What the rule has to say about it.
        detail: Option<String>,
    },
    /// Postgres answered with an error that repeating does not mend.
    #[error("{op}: {why}")]
    Broken {
        /// Which statement.
        op: &'static str,
        /// The SQLSTATE, where there is one.
        code: Option<String>,
        /// What the driver said.
        why: String,
    },
}

impl StoreError {
    /// Whether repeating later may help.
    pub fn is_away(&self) -> bool {
        matches!(self, StoreError::Away { .. } | StoreError::Held { .. } | StoreError::Denied { .. })
    }

    /// Whether a statement waited in vain for what somebody else holds: a smaller one may not have to.
    pub fn is_held(&self) -> bool {
        matches!(self, StoreError::Held { .. })
    }

    /// What no wait heals.
    pub fn denial(&self) -> Option<Denial> {
        match self {
            StoreError::Denied { denial, .. } => Some(*denial),
            _ => None,
        }
    }

    /// What to do, where somebody must do something.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        self.denial().map(|denial| denial.remedy)
    }

    /// The same, and what came of another way.
    pub(super) fn beside(self, other: &StoreError) -> StoreError {
        match (self, other) {
            (StoreError::Denied { op, denial, why }, StoreError::Denied { why: other, .. }) => {
                StoreError::Denied {
                    op,
                    denial,
                    why: format!("{why}; the other way, with or without TLS: {other}"),
                }
            }
            // A Postgres that is away denies nothing.
            (StoreError::Denied { .. }, other) => other.clone(),
            (first, _) => first,
        }
    }

    pub(super) fn from_sqlx(op: &'static str, error: sqlx::Error) -> StoreError {
        let sorted = sort(op, error);
        if !matches!(sorted, StoreError::Refused { .. }) {
            metrics::db_errors(op);
        }
        sorted
    }

    /// For those who speak of the driver's errors alone.
    pub(super) fn into_sqlx(self) -> sqlx::Error {
        sqlx::Error::Configuration(self.into())
    }

    /// A row that does not read as what its table promises.
    pub(crate) fn unreadable(op: &'static str, why: impl std::fmt::Display) -> StoreError {
        StoreError::Broken { op, code: None, why: why.to_string() }
    }
}

/// Warns of what failed. Of a Postgres that is away the store tells by itself, in one place for all (`outage`).
macro_rules! warn_of {
    ($why:expr, $($rest:tt)+) => {
        if $why.is_away() {
            tracing::debug!(why = %$why, $($rest)+)
        } else {
            tracing::warn!(why = %$why, $($rest)+)
        }
    };
}
pub(crate) use warn_of;

fn sort(op: &'static str, error: sqlx::Error) -> StoreError {
    let why = error.to_string();
    let Some(database) = error.as_database_error() else {
        return match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => StoreError::Away { op, why },
            _ => StoreError::Broken { op, code: None, why },
        };
    };
    let code = database.code().unwrap_or_default().into_owned();
    if code.starts_with("LW") {
        let detail = database
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .and_then(|e| e.detail())
            .map(str::to_owned);
        return StoreError::Refused { op, code, detail };
    }
    if is_timeout(&code) {
        StoreError::Held { op, why }
    } else if let Some(denial) = denial::of_sqlstate(&code) {
        StoreError::Denied { op, denial, why }
    } else if is_passing(&code) {
        StoreError::Away { op, why }
    } else {
        StoreError::Broken { op, code: Some(code), why }
    }
}

/// How far a failure reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum FailureReach {
    /// A connection broke, or none came about.
    Connection,
    /// One statement did not come to its end, or no connection was free for it.
    Statement,
}

/// How far an error of the driver's reaches: whether its connection is of any more use.
pub(super) fn reach(error: &sqlx::Error) -> FailureReach {
    let code = error.as_database_error().and_then(|database| database.code());
    let is_statements = match code {
        Some(code) => !(code.starts_with("08") || code.starts_with("57P") || code.starts_with("53")),
        None => matches!(error, sqlx::Error::PoolTimedOut),
    };
    if is_statements { FailureReach::Statement } else { FailureReach::Connection }
}

/// SQLSTATEs of a Postgres that cannot serve just now.
fn is_passing(code: &str) -> bool {
    code.starts_with("08")          // connection
        || code.starts_with("57P")  // shut down, crashed, starting up
        || code.starts_with("53")   // out of connections, memory or disk
        || code.starts_with("40")   // deadlock, serialisation
        || code == "25006" // read only: a standby, or a primary that was demoted
}

/// SQLSTATEs of a statement that Postgres ended by `lock_timeout` or `statement_timeout`.
fn is_timeout(code: &str) -> bool {
    matches!(code, "55P03" | "57014")
}
