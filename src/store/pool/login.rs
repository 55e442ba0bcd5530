//! Logging in: from a database URL, or the file that holds it, to a connection.
//!
//! Owns the URL. The file is read again before each login, once a second at most while logins are refused: a
//! rotated password needs no restart. A file that names another server is not followed:
//! connections of one process to two databases would be two halves of two replicas.
//!
//! The ways are libpq's: `prefer` goes on without TLS where TLS fails or Postgres does not let it in with it,
//! `allow` the other way round. A Unix socket has no TLS.

mod entry;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
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

/// The file is looked at this often at most while logins are refused.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A Postgres that speaks no TLS is asked again after so long, where TLS is only preferred.
const NO_TLS_FOR: Duration = Duration::from_secs(60);
/// How long the pool around a listener's connection waits; its pause between two tries grows to a fifth of this.
const LISTENER_MAX: Duration = Duration::from_secs(4);

/// SQLSTATE of a start that is refused for one of its settings, by Postgres and by poolers.
pub(super) const SETTING_REFUSED: [&str; 2] = ["08P01", "42704"];

/// Where Postgres is, and how this replica comes in.
#[derive(Debug)]
pub(in crate::store) struct Login {
    file: Option<PathBuf>,
    application_name: String,
    gate: Arc<Gate>,
    reachability: Arc<Reachability>,
    state: Mutex<LoginState>,
    /// When the file was read last; those who come meanwhile wait for what it says.
    looked_at: tokio::sync::Mutex<Instant>,
}

#[derive(Debug)]
struct LoginState {
    entry: Arc<LoginEntry>,
    /// What is wrong with the file as it is now.
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

/// What is to be made of a way in, and by whom it is asked for.
struct Attempt<'a, T> {
    op: &'static str,
    settle: &'a Settle<'a>,
    make: Make<T>,
}

/// Adds what a session begins with.
type Settle<'a> = dyn Fn(PgConnectOptions) -> PgConnectOptions + Send + Sync + 'a;
/// What makes something of a way in.
type Make<T> = fn(PgConnectOptions) -> BoxFuture<'static, Result<T, sqlx::Error>>;

impl Login {
    /// Connects to nothing yet.
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

    /// A connection; others wait for one that is hurried.
    pub(in crate::store) async fn connect(
        &self,
        op: &'static str,
        is_hurried: bool,
        settle: &Settle<'_>,
    ) -> Result<PgConnection, StoreError> {
        self.make(op, is_hurried, settle, connection).await
    }

    /// A connection that hears.
    pub(in crate::store) async fn listener(
        &self,
        op: &'static str,
        settle: &Settle<'_>,
    ) -> Result<PgListener, StoreError> {
        self.make(op, false, settle, listener).await
    }

    /// Why logins are refused, where they are.
    pub(in crate::store) fn refusal(&self) -> Option<Denial> {
        let state = self.state();
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

    /// Waits for the turn to knock. An error where logins are refused, and it is not yet time for the next; the
    /// number of refusals before it.
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
        // Who knocked meanwhile may have been refused; or was let in: then all others go together.
        let times = self.knock_again(op)?.unwrap_or(0);
        Ok((times, alone.filter(|_| !self.was_let_in())))
    }

    /// Whether a login was let in lately, with no break since.
    fn was_let_in(&self) -> bool {
        let at = self.gate.let_in_at(Instant::now());
        at.is_some_and(|at| !self.reachability.did_break_within(at.elapsed()))
    }

    fn knock_again(&self, op: &'static str) -> Result<Option<u32>, StoreError> {
        let state = self.state();
        let Some(refused) = &state.refused else { return Ok(None) };
        let now = Instant::now();
        if now < refused.next || !self.gate.may_knock(now) {
            let (denial, why) = state.file_fault.clone().unwrap_or((refused.denial, refused.why.clone()));
            return Err(denied(op, denial, why));
        }
        Ok(Some(refused.times))
    }

    /// Reads the file where it is time to.
    async fn look(&self) {
        let Some(file) = &self.file else { return };
        let mut looked_at = self.looked_at.lock().await;
        // While logins are refused many come here again and again.
        if self.state().refused.is_some() && looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        let read = tokio::fs::read_to_string(file).await;
        *looked_at = Instant::now();
        let mut state = self.state();
        let fault = match read {
            Err(why) => Some((denial::FILE, why.to_string())),
            Ok(text) if text.trim().is_empty() => Some((denial::FILE, "it is empty".to_owned())),
            Ok(text) if text.trim() == state.entry.text => None,
            Ok(text) => match LoginEntry::read(text.trim(), &self.application_name) {
                Err(fault) => Some(fault),
                Ok(new) if !new.is_same_database(&state.entry) => {
                    Some((denial::MOVED, "only its user, password and TLS are followed".to_owned()))
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
            tracing::warn!(why, remedy = denial.remedy, "{denial}; what was read before stays in use");
        }
        state.file_fault = fault;
    }

    /// Knocks in the ways that libpq has, one after another; a single one where the last time was refused.
    async fn try_ways<T>(&self, attempt: Attempt<'_, T>, times: u32) -> Result<T, StoreError> {
        let entry = self.state().entry.clone();
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
        Err(first.unwrap_or_else(|| denied(attempt.op, denial::URL, "no way in".to_owned())))
    }

    /// One way; with an error whether libpq would try another after it.
    async fn try_way<T>(
        &self,
        attempt: &Attempt<'_, T>,
        entry: &LoginEntry,
        way: Way,
    ) -> Result<T, (StoreError, bool)> {
        let Attempt { op, settle, make } = *attempt;
        let plain = settle(entry.options.clone().ssl_mode(PgSslMode::Disable));
        let is_without = self.state().no_tls_until.is_some_and(|until| Instant::now() < until);
        let (host, port) = (entry.host(), entry.options.get_port());
        let opened = match way {
            Way::Tls if !(is_without && entry.tls.mode < Mode::Require) => entry.tls.open(host, port).await,
            _ => Ok(None),
        };
        let judge = |error: sqlx::Error| {
            // For its settings: another login without them follows at once.
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
                    self.state().no_tls_until = Some(Instant::now() + NO_TLS_FOR);
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

    /// What a login came to, for those that follow.
    fn note<T>(&self, made: &Result<T, StoreError>) {
        let now = Instant::now();
        let mut state = self.state();
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
            // It is away in another way: that is waited for as ever.
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

    fn state(&self) -> MutexGuard<'_, LoginState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether a login was refused for a setting of its session: by a Postgres that is there.
fn refused_code(why: &sqlx::Error) -> Option<String> {
    let code = why.as_database_error()?.code()?;
    SETTING_REFUSED.contains(&&*code).then(|| code.into_owned())
}
