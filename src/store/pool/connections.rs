//! The connections that statements go over: each is lent to one statement, and the one that was lent last is
//! lent first, so that the rest may rest and go.
//!
//! Owns how many there are, and which are no longer to be trusted. A busy one needs no round trip to prove
//! itself; one that slept through a restart or a verdict must not fail the first to come; those from before a
//! break are not asked: a cut network answers no question, and each would cost the next caller the time for one.
//!
//! A login takes a hundred times as long as a statement, and seconds on a busy machine. Nobody waits for one while a
//! connection is given back: the login goes on by itself, and its connection serves those who come later.
//!
//! Not sqlx's pool, which asks each connection that is given back whether it still lives: a round trip and a
//! task for every statement (`docs/PERFORMANCE.md`).

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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

/// How long a statement may take before its connection is given up.
const STATEMENT_MAX: Duration = Duration::from_secs(5);
/// A statement that has waited for so long when Postgres is reached again is given up.
const BREAK_MAX: Duration = Duration::from_secs(1);
/// How long a connection may rest before it is asked whether it still lives, and how long that may take.
const REST_MAX: Duration = Duration::from_secs(1);
const PING_MAX: Duration = Duration::from_secs(1);
/// How long a caller waits for a free connection.
const LEND_MAX: Duration = Duration::from_secs(3);
/// How long a login may take, though its caller may have gone by then.
const LOGIN_MAX: Duration = Duration::from_secs(5);
/// How long an exit waits for statements under way.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// A connection that has rested for so long, or is so old, is let go.
const IDLE_MAX: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(1800);
/// What is told of that which began before a break.
const BEFORE_BREAK: &str = "no answer before Postgres was away";

/// The connections of one replica, but for those with a purpose of their own.
#[derive(Debug)]
pub(in crate::store) struct Connections {
    sessions: Arc<Sessions>,
    /// For those that hold a connection, or wait for one.
    places: Arc<Semaphore>,
    /// For connections, those that are being made included.
    rooms: Arc<Semaphore>,
    places_max: u32,
    /// Lent last is last.
    resting: Mutex<VecDeque<Resting>>,
    given_back: Notify,
    reachability: Arc<Reachability>,
}

#[derive(Debug)]
struct Resting {
    own: PooledConnection,
    since: Instant,
}

/// A connection of this pool.
#[derive(Debug)]
struct PooledConnection {
    conn: Conn,
    made: Instant,
    _room: OwnedSemaphorePermit,
}

impl Connections {
    /// None yet, and never more than so many.
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

    /// One that answers, as far as that can be known.
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
                    // Whoever was connecting all the time waits in vain.
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
        let place = place.map_err(|_| away("acquire", "this process lets go of Postgres".to_owned()))?;
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
                // It starts, has no room right now, or lets nobody in: those that are there serve all.
                Err(why) if why.is_away() => {
                    let pause = Duration::from_millis(rand::random_range(50..150));
                    let _ = timeout(pause, self.given_back.notified()).await;
                }
                Err(why) => return Err(why),
            }
        };
        Ok(Loan { own: Some(own), is_clean: AtomicBool::new(true), home: self.clone(), _place: place })
    }

    /// One that rests, and answers as far as that can be known.
    async fn take_resting(&self) -> Option<PooledConnection> {
        loop {
            let Resting { mut own, since } = self.resting().pop_back()?;
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

    /// Makes one that rests then.
    fn make(self: &Arc<Self>, room: OwnedSemaphorePermit) -> JoinHandle<Result<(), StoreError>> {
        let home = self.clone();
        // It ends with its time, and nobody has to wait for it: no task of the replica.
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
        let mut resting = self.resting();
        resting.push_back(Resting { own, since: Instant::now() });
        while resting.front().is_some_and(|oldest| oldest.since.elapsed() > IDLE_MAX) {
            resting.pop_front();
        }
        drop(resting);
        self.given_back.notify_one();
    }

    /// How many are lent, and how many can be.
    pub(in crate::store) fn lent(&self) -> (usize, usize) {
        let most = self.places_max as usize;
        (most.saturating_sub(self.places.available_permits()), most)
    }

    /// Lets go of those that nobody uses.
    pub(in crate::store) fn forget(&self) {
        self.resting().clear();
    }

    /// Lends no more, and lets go of all. A connection that hangs in a stalled statement does not hold it up.
    pub(in crate::store) async fn close(&self) {
        let _ = timeout(CLOSE_MAX, async {
            let all_back = self.places.acquire_many(self.places_max).await;
            self.places.close();
            let resting = std::mem::take(&mut *self.resting());
            for Resting { own, .. } in resting {
                let _ = own.conn.bare.close().await;
            }
            drop(all_back);
        })
        .await;
        self.places.close();
    }

    fn resting(&self) -> MutexGuard<'_, VecDeque<Resting>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn away(op: &'static str, why: String) -> StoreError {
    StoreError::Away { op, why }
}

/// A connection that is thrown away when a statement on it did not come back in time: what is still under
/// way on it would make the next user wait.
pub(in crate::store) struct Loan {
    own: Option<PooledConnection>,
    is_clean: AtomicBool,
    home: Arc<Connections>,
    /// Free again once the connection is back.
    _place: OwnedSemaphorePermit,
}

impl Loan {
    /// Runs one statement, named for people.
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
                // Postgres has ended the statement itself where it took too long, and a right that is lacking says
                // nothing against the connection.
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
