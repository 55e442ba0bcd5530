//! The connection pool: each connection is lent to one statement at a time, most recently used first, so that surplus
//! connections become idle and are closed.
//!
//! Owns the number of connections, and which of them are still trusted. A connection in constant use is not checked;
//! one that was idle for more than 1 s is pinged, so that no statement fails on a connection that a restart or a
//! verdict has closed. Connections from before an outage are dropped without a ping: after a cut network each ping
//! would time out.
//!
//! A login takes a hundred times as long as a statement, and seconds on a busy machine. A caller never waits for a
//! login while a connection is returned: the login continues by itself, and its connection serves later callers.
//!
//! Not sqlx's pool, which pings each returned connection: a round trip and a task for every statement
//! (`docs/PERFORMANCE.md`).

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sqlx::Connection as _;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    conn::Conn,
    reachability::Reachability,
    session::{SessionPurpose, Sessions},
};
use crate::store::error::{self, FailureReach, StoreError};

/// Deadline of a statement; after it the connection is dropped.
const STATEMENT_MAX: Duration = Duration::from_secs(5);
/// A statement that is older than this when Postgres is reachable again is given up.
const BREAK_MAX: Duration = Duration::from_secs(1);
/// How long a connection may be idle before it is pinged, and the timeout of the ping.
const REST_MAX: Duration = Duration::from_secs(1);
const PING_MAX: Duration = Duration::from_secs(1);
/// How long a caller waits for a connection.
const LEND_MAX: Duration = Duration::from_secs(3);
/// Deadline of a login, even if its caller has gone.
const LOGIN_MAX: Duration = Duration::from_secs(5);
/// How long the shutdown waits for running statements.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// A connection that was idle for this long, or is this old, is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(1800);
/// The error of work that began before an outage.
const BEFORE_BREAK: &str = "no answer before Postgres was away";

/// The connections of one replica, without the dedicated sessions of tasks.
#[derive(Debug)]
pub(in crate::store) struct Connections {
    sessions: Arc<Sessions>,
    /// Permits for callers that hold a connection or are about to get one.
    places: Arc<Semaphore>,
    /// Permits for connections, including those being opened.
    rooms: Arc<Semaphore>,
    places_max: u32,
    /// Idle connections; the most recently used is last.
    resting: Mutex<VecDeque<Resting>>,
    given_back: Notify,
    reachability: Arc<Reachability>,
}

#[derive(Debug)]
struct Resting {
    own: PooledConnection,
    since: Instant,
}

/// A pooled connection.
#[derive(Debug)]
struct PooledConnection {
    conn: Conn,
    made: Instant,
    _room: OwnedSemaphorePermit,
}

impl Connections {
    /// An empty pool for at most `places_max` connections.
    pub(in crate::store) fn new(
        sessions: Arc<Sessions>,
        places_max: u32,
        reachability: Arc<Reachability>,
    ) -> Connections {
        Connections {
            sessions,
            places: Arc::new(Semaphore::new(places_max as usize)),
            rooms: Arc::new(Semaphore::new(places_max as usize)),
            places_max,
            resting: Mutex::default(),
            given_back: Notify::new(),
            reachability,
        }
    }

    /// Lends a connection that is believed to work.
    pub(in crate::store) async fn lend(self: &Arc<Self>) -> Result<Loan, StoreError> {
        let lent = async {
            loop {
                let regained = self.reachability.regained();
                if self.reachability.is_lost() {
                    regained.await;
                    continue;
                }
                tokio::select! {
                    biased;
                    lease = self.take_or_make() => return lease,
                    // A caller that was connecting throughout the outage would time out: start again.
                    () = regained => {}
                }
            }
        };
        match timeout(LEND_MAX, lent).await {
            Ok(lease) => lease,
            Err(_) => {
                let why = match self.sessions.refusal() {
                    Some(denial) => denial.to_string(),
                    None => format!("no connection within {LEND_MAX:?}"),
                };
                let why = away("acquire", why);
                self.reachability.failed(FailureReach::Statement, &why);
                Err(why)
            }
        }
    }

    async fn take_or_make(self: &Arc<Self>) -> Result<Loan, StoreError> {
        let place = self.places.clone().acquire_owned().await;
        let place = place
            .map_err(|_| away("acquire", "this process closes its connections to Postgres".to_owned()))?;
        let mut making: Option<JoinHandle<Result<(), StoreError>>> = None;
        let own = loop {
            let given_back = self.given_back.notified();
            if let Some(own) = self.take_resting().await {
                break own;
            }
            let Some(login) = &mut making else {
                tokio::select! {
                    biased;
                    room = self.rooms.clone().acquire_owned() => making = room.ok().map(|room| self.make(room)),
                    () = given_back => {}
                }
                continue;
            };
            let made = tokio::select! {
                made = login => made.unwrap_or_else(|why| Err(away("acquire", why.to_string()))),
                () = given_back => continue,
            };
            making = None;
            match made {
                Ok(()) => {}
                // Postgres is starting, has no connection left, or rejects the login: use those that exist.
                Err(why) if why.is_away() => {
                    let pause = Duration::from_millis(rand::random_range(50..150));
                    let _ = timeout(pause, self.given_back.notified()).await;
                }
                Err(why) => return Err(why),
            }
        };
        Ok(Loan { own: Some(own), is_clean: AtomicBool::new(true), home: self.clone(), _place: place })
    }

    /// An idle connection that is believed to work; `None` if there is none.
    async fn take_resting(&self) -> Option<PooledConnection> {
        loop {
            let Resting { mut own, since } = self.resting.lock().pop_back()?;
            if self.reachability.was_lost_within(own.made.elapsed()) || own.made.elapsed() > AGE_MAX {
                continue;
            }
            let is_warm = since.elapsed() < REST_MAX;
            if is_warm || matches!(timeout(PING_MAX, own.conn.bare.ping()).await, Ok(Ok(()))) {
                return Some(own);
            }
            self.reachability.broke();
        }
    }

    /// Opens a connection in a task of its own; the connection then joins the idle ones.
    fn make(self: &Arc<Self>, room: OwnedSemaphorePermit) -> JoinHandle<Result<(), StoreError>> {
        let home = self.clone();
        // Not a task of the supervisor: it ends at its own deadline, and nobody has to wait for it.
        #[allow(
            clippy::disallowed_methods,
            reason = "a login that outlives who wanted it, and ends by itself"
        )]
        tokio::spawn(async move {
            let login = home.sessions.open("acquire", SessionPurpose::Pool(STATEMENT_MAX));
            let conn = tokio::select! {
                biased;
                conn = timeout(LOGIN_MAX, login) => conn,
                () = home.reachability.regained() => return Err(away("acquire", BEFORE_BREAK.to_owned())),
            };
            let conn = conn.map_err(|_| away("acquire", format!("no login within {LOGIN_MAX:?}")))??;
            home.give_back(PooledConnection { conn, made: Instant::now(), _room: room });
            Ok(())
        })
    }

    fn give_back(&self, own: PooledConnection) {
        if self.places.is_closed() {
            return;
        }
        let mut resting = self.resting.lock();
        resting.push_back(Resting { own, since: Instant::now() });
        while resting.front().is_some_and(|oldest| oldest.since.elapsed() > IDLE_MAX) {
            resting.pop_front();
        }
        drop(resting);
        self.given_back.notify_one();
    }

    /// How many connections are lent, and the limit.
    pub(in crate::store) fn lent(&self) -> (usize, usize) {
        let most = self.places_max as usize;
        (most.saturating_sub(self.places.available_permits()), most)
    }

    /// Closes the idle connections.
    pub(in crate::store) fn forget(&self) {
        self.resting.lock().clear();
    }

    /// Lends no more, and closes all connections. Waits at most 2 s for running statements.
    pub(in crate::store) async fn close(&self) {
        let _ = timeout(CLOSE_MAX, async {
            let all_back = self.places.acquire_many(self.places_max).await;
            self.places.close();
            let resting = std::mem::take(&mut *self.resting.lock());
            for Resting { own, .. } in resting {
                let _ = own.conn.bare.close().await;
            }
            drop(all_back);
        })
        .await;
        self.places.close();
    }
}

fn away(op: &'static str, why: String) -> StoreError {
    StoreError::Away { op, why }
}

/// A lent connection. It is closed instead of returned if its last statement did not finish: the next user would wait
/// for that statement.
pub(in crate::store) struct Loan {
    own: Option<PooledConnection>,
    is_clean: AtomicBool,
    home: Arc<Connections>,
    /// Released after the connection is back.
    _place: OwnedSemaphorePermit,
}

impl Loan {
    /// Runs one statement; `op` is its name in errors and metrics.
    pub(in crate::store) async fn run<'c, T, F>(
        &'c mut self,
        op: &'static str,
        statement: impl FnOnce(&'c mut Conn) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, sqlx::Error>> + 'c,
    {
        let Some(PooledConnection { conn, .. }) = self.own.as_mut() else {
            return Err(away(op, "the connection was given up".to_owned()));
        };
        let reachability = &self.home.reachability;
        self.is_clean.store(false, Ordering::Relaxed);
        let began = Instant::now();
        let mut answer = pin!(timeout(STATEMENT_MAX, statement(conn)));
        let answer = tokio::select! {
            biased;
            answer = answer.as_mut() => answer,
            () = reachability.regained() => match began.elapsed() < BREAK_MAX {
                true => answer.await,
                false => return Err(away(op, BEFORE_BREAK.to_owned())),
            },
        };
        match answer {
            Ok(Ok(value)) => {
                reachability.heard();
                self.is_clean.store(true, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(why)) => {
                let reach = error::reach(&why);
                let error = StoreError::from_sqlx(op, why);
                // Still usable after a timeout that Postgres enforced itself, or after a missing right.
                let is_sound = !error.is_away() || error.is_held() || error.denial().is_some();
                self.is_clean.store(is_sound, Ordering::Relaxed);
                reachability.failed(reach, &error);
                Err(error)
            }
            Err(_) => {
                let error = away(op, format!("no answer within {STATEMENT_MAX:?}"));
                reachability.failed(FailureReach::Statement, &error);
                Err(error)
            }
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.is_clean.load(Ordering::Relaxed)
            && let Some(own) = self.own.take()
        {
            self.home.give_back(own);
        }
    }
}
