//! What can go wrong between this process and Postgres.
//!
//! Owns the distinction between "away" (the outcome is unknown or Postgres cannot serve: retry later), "denied"
//! (Postgres rejects this process and waiting does not help: a running replica treats it as away, a starting one exits)
//! and "broken" (Postgres answered, and a retry gives the same answer). Decided by SQLSTATE, never by message text.

use super::{
    pool::denial::{self, Denial},
    records::word::AcceptRefusal,
};
use crate::{telemetry::metrics, word::Open};

/// A statement that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, cannot serve, or did not answer in time. The outcome is unknown.
    #[error("{op}: Postgres is away: {why}")]
    Away {
        /// The name of the statement.
        op: &'static str,
        /// The driver's message.
        why: String,
    },
    /// The statement timed out, as a rule on a lock that another session holds. Nothing was changed.
    #[error("{op}: another session has locked a row or a table: {why}")]
    Held {
        /// The name of the statement.
        op: &'static str,
        /// The driver's message.
        why: String,
    },
    /// Postgres rejects the login, or the role lacks a right. An operator must act.
    #[error("{op}: {denial}: {why}")]
    Denied {
        /// The name of the statement.
        op: &'static str,
        /// The cause and its remedy.
        denial: Denial,
        /// The driver's message.
        why: String,
    },
    /// `lw_accept_v1` refused the turn.
    #[error("{op}: refused with {code}")]
    Refused {
        /// The name of the statement.
        op: &'static str,
        /// Why.
        code: Open<AcceptRefusal>,
        /// More about the refusal, if the function gave any.
        detail: Option<String>,
    },
    /// Postgres answered with an error that a retry does not change.
    #[error("{op}: {why}")]
    Broken {
        /// The name of the statement.
        op: &'static str,
        /// The SQLSTATE, if the error has one.
        code: Option<String>,
        /// The driver's message.
        why: String,
    },
}

impl StoreError {
    /// Whether a retry later may succeed.
    pub fn is_away(&self) -> bool {
        matches!(self, StoreError::Away { .. } | StoreError::Held { .. } | StoreError::Denied { .. })
    }

    /// Whether the statement timed out on another session's lock. A smaller batch may avoid that lock.
    pub fn is_held(&self) -> bool {
        matches!(self, StoreError::Held { .. })
    }

    /// Why Postgres rejects this process; `None` for other errors.
    pub fn denial(&self) -> Option<Denial> {
        match self {
            StoreError::Denied { denial, .. } => Some(*denial),
            _ => None,
        }
    }

    /// What an operator has to do; `None` if nothing.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        self.denial().map(|denial| denial.remedy)
    }

    /// Combines two failed logins, with and without TLS, into one error.
    pub(super) fn beside(self, other: &StoreError) -> StoreError {
        match (self, other) {
            (StoreError::Denied { op, denial, why }, StoreError::Denied { why: other, .. }) => {
                StoreError::Denied {
                    op,
                    denial,
                    why: format!("{why}; the other way, with or without TLS: {other}"),
                }
            }
            // If either login found Postgres away, a rejection of the other proves nothing.
            (StoreError::Denied { .. }, other) => other.clone(),
            (first, _) => first,
        }
    }

    pub(super) fn from_sqlx(op: &'static str, error: sqlx::Error) -> StoreError {
        metrics::db_errors(op);
        sort(op, error)
    }

    /// For callers whose own error type is the driver's.
    pub(super) fn into_sqlx(self) -> sqlx::Error {
        sqlx::Error::Configuration(self.into())
    }

    /// An error for a row that violates what its table promises.
    pub(crate) fn unreadable(op: &'static str, why: impl std::fmt::Display) -> StoreError {
        StoreError::Broken { op, code: None, why: why.to_string() }
    }
}

/// Logs a failure as a warning. A failure because Postgres is away is logged at debug only: `outage` reports it once.
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

/// How much a failure affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum FailureReach {
    /// A connection broke or could not be opened.
    Connection,
    /// One statement failed, or no connection was free for it.
    Statement,
}

/// What a driver error affects: the connection, or only the statement.
pub(super) fn reach(error: &sqlx::Error) -> FailureReach {
    let code = error.as_database_error().and_then(|database| database.code());
    let is_statements = match code {
        Some(code) => !(code.starts_with("08") || code.starts_with("57P") || code.starts_with("53")),
        None => matches!(error, sqlx::Error::PoolTimedOut),
    };
    if is_statements { FailureReach::Statement } else { FailureReach::Connection }
}

/// SQLSTATEs of a Postgres that cannot serve for now.
fn is_passing(code: &str) -> bool {
    code.starts_with("08")          // connection
        || code.starts_with("57P")  // shut down, crashed, starting up
        || code.starts_with("53")   // out of connections, memory or disk
        || code.starts_with("40")   // deadlock, serialisation
        || code == "25006" // read only: a standby, or a primary that was demoted
}

/// SQLSTATEs of `lock_timeout` and `statement_timeout`.
fn is_timeout(code: &str) -> bool {
    matches!(code, "55P03" | "57014")
}
