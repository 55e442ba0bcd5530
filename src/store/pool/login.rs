//! Login: from a database URL, or a file that contains one, to a connection.
//!
//! Owns the URL. The file is read before each login, at most once a second while logins are rejected, so a rotated
//! password needs no restart. Refuses a file that names another server or database: one process must not work on two
//! databases.
//!
//! TLS modes behave as in libpq: `prefer` retries without TLS if TLS fails or Postgres rejects the encrypted login;
//! `allow` retries with TLS. A Unix socket has no TLS.

mod entry;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{
    ConnectOptions as _, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgSslMode},
};
use tokio::{sync::OwnedMutexGuard, time::Instant};

use self::entry::{LoginEntry, Way};
use super::{
    denial::{self, Denial},
    gate::{self, Gate},
    reachability::Reachability,
    tls::{Mode, TlsFault},
};
use crate::store::error::{FailureReach, StoreError};

/// Least time between two reads of the file while logins are rejected.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a server without TLS is not asked for TLS again, if TLS is only preferred.
const NO_TLS_FOR: Duration = Duration::from_secs(60);
/// Timeout of the driver's pool around a listener connection. The pool's retry delay grows to a fifth of this.
const LISTENER_MAX: Duration = Duration::from_secs(4);

/// SQLSTATEs of a login that is rejected because of a startup parameter, by Postgres or by a pooler.
pub(super) const SETTING_REFUSED: [&str; 2] = ["08P01", "42704"];

/// The address of Postgres and the credentials of this replica.
#[derive(Debug)]
pub(in crate::store) struct Login {
    file: Option<PathBuf>,
    application_name: String,
    gate: Arc<Gate>,
    reachability: Arc<Reachability>,
    state: Mutex<LoginState>,
    /// When the file was last read. Locked while reading, so that concurrent logins wait for the result.
    looked_at: tokio::sync::Mutex<Instant>,
}

#[derive(Debug)]
struct LoginState {
    entry: Arc<LoginEntry>,
    /// What is wrong with the current file.
    file_fault: Option<(Denial, String)>,
    refused: Option<Refused>,
    no_tls_until: Option<Instant>,
}

#[derive(Debug)]
struct Refused {
    denial: Denial,
    why: String,
    times: u32,
    next: Instant,
}

/// One login: its name, its session settings, and how to make the connection.
struct Attempt<'a, T> {
    op: &'static str,
    settle: &'a Settle<'a>,
    make: Make<T>,
}

/// Adds the settings of a session.
type Settle<'a> = dyn Fn(PgConnectOptions) -> PgConnectOptions + Send + Sync + 'a;
/// Opens a connection from driver options.
type Make<T> = fn(PgConnectOptions) -> BoxFuture<'static, Result<T, sqlx::Error>>;

impl Login {
    /// Parses the URL; does not connect.
    pub(in crate::store) fn new(
        url: &str,
        file: Option<&Path>,
        application_name: &str,
        gate: Arc<Gate>,
        reachability: Arc<Reachability>,
    ) -> Result<Login, StoreError> {
        let entry = LoginEntry::read(url, application_name)
            .map_err(|(denial, why)| denied("connect", denial, why))?;
        let state =
            LoginState { entry: Arc::new(entry), file_fault: None, refused: None, no_tls_until: None };
        let (file, application_name) = (file.map(Path::to_owned), application_name.to_owned());
        let looked_at = tokio::sync::Mutex::new(Instant::now());
        Ok(Login { file, application_name, gate, reachability, state: Mutex::new(state), looked_at })
    }

    /// Opens a connection. `is_hurried`: waits at most 250 ms for a login that goes first, instead of 500 ms.
    pub(in crate::store) async fn connect(
        &self,
        op: &'static str,
        is_hurried: bool,
        settle: &Settle<'_>,
    ) -> Result<PgConnection, StoreError> {
        self.make(op, is_hurried, settle, connection).await
    }

    /// Opens a LISTEN connection.
    pub(in crate::store) async fn listener(
        &self,
        op: &'static str,
        settle: &Settle<'_>,
    ) -> Result<PgListener, StoreError> {
        self.make(op, false, settle, listener).await
    }

    /// Why logins are rejected; `None` if they are not.
    pub(in crate::store) fn refusal(&self) -> Option<Denial> {
        let state = self.state.lock();
        let refused = state.refused.as_ref()?.denial;
        Some(state.file_fault.as_ref().map_or(refused, |(denial, _)| *denial))
    }

    async fn make<T>(
        &self,
        op: &'static str,
        is_hurried: bool,
        settle: &Settle<'_>,
        make: Make<T>,
    ) -> Result<T, StoreError> {
        let (times, _alone) = self.enter(op, is_hurried).await?;
        let made = self.try_ways(Attempt { op, settle, make }, times).await;
        self.note(&made);
        made
    }

    /// Waits until a login may be tried; returns how many were rejected before. An error while logins are rejected and
    /// the next one is not due.
    async fn enter(
        &self,
        op: &'static str,
        is_hurried: bool,
    ) -> Result<(u32, Option<OwnedMutexGuard<()>>), StoreError> {
        self.look().await;
        if let Some(times) = self.knock_again(op)? {
            return Ok((times, None));
        }
        if self.was_let_in() {
            return Ok((0, None));
        }
        let alone = self.gate.alone(is_hurried).await;
        // The login that went first may have failed; or it succeeded, and then all others go at once.
        let times = self.knock_again(op)?.unwrap_or(0);
        Ok((times, alone.filter(|_| !self.was_let_in())))
    }

    /// Whether a login succeeded within 5 s and no connection has broken since.
    fn was_let_in(&self) -> bool {
        let at = self.gate.let_in_at(Instant::now());
        at.is_some_and(|at| !self.reachability.did_break_within(at.elapsed()))
    }

    fn knock_again(&self, op: &'static str) -> Result<Option<u32>, StoreError> {
        let state = self.state.lock();
        let Some(refused) = &state.refused else { return Ok(None) };
        let now = Instant::now();
        if now < refused.next || !self.gate.may_knock(now) {
            let (denial, why) = state.file_fault.clone().unwrap_or((refused.denial, refused.why.clone()));
            return Err(denied(op, denial, why));
        }
        Ok(Some(refused.times))
    }

    /// Reads the file, if a read is due.
    async fn look(&self) {
        let Some(file) = &self.file else { return };
        let mut looked_at = self.looked_at.lock().await;
        // While logins are rejected many callers come here repeatedly.
        if self.state.lock().refused.is_some() && looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        let read = tokio::fs::read_to_string(file).await;
        *looked_at = Instant::now();
        let mut state = self.state.lock();
        let fault = match read {
            Err(why) => Some((denial::FILE, why.to_string())),
            Ok(text) if text.trim().is_empty() => Some((denial::FILE, "it is empty".to_owned())),
            Ok(text) if text.trim() == state.entry.text => None,
            Ok(text) => match LoginEntry::read(text.trim(), &self.application_name) {
                Err(fault) => Some(fault),
                Ok(new) if !new.is_same_database(&state.entry) => {
                    Some((denial::MOVED, "only changes of user, password and TLS are taken over".to_owned()))
                }
                Ok(new) => {
                    tracing::info!("the file that holds the database URL has changed");
                    state.entry = Arc::new(new);
                    if let Some(refused) = &mut state.refused {
                        (refused.times, refused.next) = (0, Instant::now());
                    }
                    None
                }
            },
        };
        if let Some((denial, why)) = &fault
            && state.file_fault != fault
        {
            tracing::warn!(why, remedy = denial.remedy, "{denial}; the URL read before stays in use");
        }
        state.file_fault = fault;
    }

    /// Tries the ways of libpq in order, with and without TLS; only one of them after a rejected login.
    async fn try_ways<T>(&self, attempt: Attempt<'_, T>, times: u32) -> Result<T, StoreError> {
        let entry = self.state.lock().entry.clone();
        let ways = entry.ways();
        let skipped = usize::try_from(times).unwrap_or(0) % ways.len();
        let most = if times > 0 { 1 } else { ways.len() };
        let mut first: Option<StoreError> = None;
        for way in ways.iter().cycle().skip(skipped).take(most) {
            match self.try_way(&attempt, &entry, *way).await {
                Ok(made) => return Ok(made),
                Err((error, may_go_on)) => {
                    let error = match first.take() {
                        Some(first) => first.beside(&error),
                        None => error,
                    };
                    if !may_go_on {
                        return Err(error);
                    }
                    first = Some(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| denied(attempt.op, denial::URL, "every way to log in failed".to_owned())))
    }

    /// Tries one way. An error comes with whether libpq would try the next way.
    async fn try_way<T>(
        &self,
        attempt: &Attempt<'_, T>,
        entry: &LoginEntry,
        way: Way,
    ) -> Result<T, (StoreError, bool)> {
        let Attempt { op, settle, make } = *attempt;
        let plain = settle(entry.options.clone().ssl_mode(PgSslMode::Disable));
        let is_without = self.state.lock().no_tls_until.is_some_and(|until| Instant::now() < until);
        let (host, port) = (entry.host(), entry.options.get_port());
        let opened = match way {
            Way::Tls if !(is_without && entry.tls.mode < Mode::Require) => entry.tls.open(host, port).await,
            _ => Ok(None),
        };
        let judge = |error: sqlx::Error| {
            // Rejected because of a startup parameter: the caller retries without parameters.
            if let Some(code) = refused_code(&error) {
                return (StoreError::Broken { op, code: Some(code), why: error.to_string() }, false);
            }
            let error = StoreError::from_sqlx(op, error);
            let may_go_on = error.denial() == Some(denial::ENTRY);
            (error, may_go_on)
        };
        match opened {
            Ok(None) => {
                if way == Way::Tls && !is_without {
                    self.state.lock().no_tls_until = Some(Instant::now() + NO_TLS_FOR);
                }
                make(plain).await.map_err(judge)
            }
            Ok(Some(carried)) => {
                let (directory, port) = carried.place();
                let made = make(plain.socket(directory).port(port)).await;
                made.map_err(|error| match carried.fault() {
                    Some((denial, why)) => (denied(op, denial, why), false),
                    None => judge(error),
                })
            }
            Err(TlsFault::Denied(denial, why)) => Err((denied(op, denial, why), true)),
            Err(TlsFault::Io(why)) => {
                let was_there =
                    matches!(why.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                Err((StoreError::from_sqlx(op, why.into()), was_there))
            }
        }
    }

    /// Notes the result of a login for later ones.
    fn note<T>(&self, made: &Result<T, StoreError>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let was_refused = state.refused.is_some();
        match made {
            Ok(_) => {
                state.refused = None;
                self.gate.let_in(now);
            }
            Err(StoreError::Denied { denial, why, .. }) => {
                let times = state.refused.as_ref().map_or(0, |refused| refused.times).saturating_add(1);
                let next = now + gate::pause(times, rand::random());
                state.refused = Some(Refused { denial: *denial, why: why.clone(), times, next });
                self.gate.refused(now);
            }
            // Away for another reason: the normal reconnect applies.
            Err(_) => state.refused = None,
        }
        match (was_refused, state.refused.is_some()) {
            (false, true) => self.reachability.refused(),
            (true, false) => self.reachability.let_in(),
            _ => {}
        }
        drop(state);
        if let Err(why) = made {
            self.reachability.failed(FailureReach::Connection, why);
        }
    }
}

fn denied(op: &'static str, denial: Denial, why: String) -> StoreError {
    StoreError::Denied { op, denial, why }
}

fn connection(options: PgConnectOptions) -> BoxFuture<'static, Result<PgConnection, sqlx::Error>> {
    Box::pin(async move { options.connect().await })
}

fn listener(options: PgConnectOptions) -> BoxFuture<'static, Result<PgListener, sqlx::Error>> {
    Box::pin(async move {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .acquire_timeout(LISTENER_MAX)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        PgListener::connect_with(&pool).await
    })
}

/// The SQLSTATE if Postgres or a pooler rejected a startup parameter.
fn refused_code(why: &sqlx::Error) -> Option<String> {
    let code = why.as_database_error()?.code()?;
    SETTING_REFUSED.contains(&&*code).then(|| code.into_owned())
}
