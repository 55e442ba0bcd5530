//! The store: all SQL, and the doorbell. The only place that imports `sqlx`.
//!
//! Owns the connections of one replica, the statements (one file a table), the group-commit
//! [`writer`] and the doorbell ([`wake`]). Refuses client round trips inside a transaction: each
//! call here is one statement or one SQL function, so a process that freezes in the middle hides
//! nothing from the others for longer than its statement takes.
//!
//! Every statement has a deadline. One that fails or is given up on may or may not have been
//! committed; callers that repeat do so with the identical statement, which is harmless.

pub mod accept;
pub mod agents;
pub mod assignment;
pub mod beat;
pub mod claim;
pub mod closing;
pub mod commands;
mod contact;
pub mod conversations;
pub mod desk;
pub mod doctor;
pub mod error;
pub mod events;
pub mod gauges;
pub mod inflight;
pub mod intake;
pub mod limits;
pub mod listener;
pub mod lookout;
pub mod mass;
pub mod migrate;
pub mod pages;
pub mod partitions;
pub mod reader;
mod recent;
pub mod remote_turns;
pub mod remote_workers;
pub mod replicas;
pub mod rewound;
pub mod ringer;
pub mod turns;
pub mod verify;
pub mod wake;
pub mod witness;
pub mod workers;
pub mod writer;

use std::{
    future::Future,
    pin::pin,
    str::FromStr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{
    Connection, Executor as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::Instant;

use agents::Remembered;
use contact::Contact;
use desk::Desk;
pub use error::StoreError;
use intake::Intake;
use reader::Reads;
use wake::Wake;
use witness::Witness;

use crate::{
    clock::Clock,
    config::{Config, Lever},
    id::ReplicaId,
};

/// How long a statement may take before its connection is given up.
const STATEMENT_MAX: Duration = Duration::from_secs(5);
/// A statement that has waited for so long when contact with Postgres is regained is given up.
const BREAK_MAX: Duration = Duration::from_secs(1);
/// How long a connection may rest before it is asked whether it still lives, and how long that may take.
const REST_MAX: Duration = Duration::from_secs(1);
const PING_MAX: Duration = Duration::from_secs(1);
/// How long a caller waits for a free connection.
const ACQUIRE_MAX: Duration = Duration::from_secs(3);

/// One replica's view of Postgres. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    options: PgConnectOptions,
    listener_options: PgConnectOptions,
    clock: Arc<Clock>,
    wake: Arc<Wake>,
    witness: Arc<Witness>,
    reads: Arc<Reads>,
    intake: Arc<Intake>,
    desk: Arc<Desk>,
    remembered: Arc<Remembered>,
    breaks: Arc<AtomicU64>,
    contact: Arc<Contact>,
    replica: Arc<RwLock<ReplicaId>>,
    application_name: Arc<str>,
    ablated: Arc<[Lever]>,
}

impl Store {
    /// Opens the pool. Needs no reachable Postgres; [`Store::probe`] tells whether there is one.
    pub fn open(config: &Config) -> Result<Store, StoreError> {
        let clock = Arc::new(Clock::default());
        let replica = ReplicaId(clock.mint());
        let application_name: Arc<str> = format!("lastword {}", replica.0.as_simple()).into();
        let options = connect_options(&config.database_url, &application_name)?;
        let listener_url = config.listener_database_url.as_ref().unwrap_or(&config.database_url);
        let listener_options = connect_options(listener_url, &application_name)?;
        let contact = Arc::new(Contact::default());
        let keeps_plans = !config.ablate.contains(&Lever::KeptPlans);
        let pool = pool(config.pool_max, keeps_plans, &contact).connect_lazy_with(options.clone());
        Ok(Store {
            pool,
            options,
            listener_options,
            clock,
            wake: Arc::new(Wake::new(config.doorbell, replica.0)),
            witness: Arc::default(),
            reads: Arc::default(),
            intake: Arc::default(),
            desk: Arc::default(),
            remembered: Arc::default(),
            breaks: Arc::default(),
            contact,
            replica: Arc::new(RwLock::new(replica)),
            application_name,
            ablated: config.ablate.as_slice().into(),
        })
    }

    /// Whether this replica does something for speed that a measurement may take from it.
    pub fn uses(&self, lever: Lever) -> bool {
        !self.ablated.contains(&lever)
    }

    /// The database's clock, and the home of new ids.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The doorbell.
    pub fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    /// Where turns are handed in.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// Where remote workers and the engine meet.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// What this process has seen committed, of late.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// How often the beat's connection to Postgres has broken: after each, commits may be missing.
    pub fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Acquire)
    }

    /// The beat's connection has broken. Idle ones are let go: they are no better, or Postgres has none left
    /// for the beat.
    pub fn note_break(&self) {
        self.contact.lost();
        while let Some(conn) = self.pool.try_acquire() {
            drop(conn.detach());
        }
        self.breaks.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether Postgres has answered this process within so long.
    pub fn was_heard_within(&self, time: Duration) -> bool {
        self.contact.was_heard_within(time)
    }

    /// Who this process is now. It changes when the replica was judged lost and starts over.
    pub fn replica(&self) -> ReplicaId {
        *self.replica.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What this process' backends call themselves; one name a boot.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// Takes a new identity, to register anew with.
    pub fn rename_replica(&self) -> ReplicaId {
        let fresh = ReplicaId(self.clock.mint());
        *self.replica.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        fresh
    }

    /// Asks Postgres for its time: proof that it answers, and the clock's offset.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        let now = lease
            .run("probe", |c| sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(c))
            .await?;
        self.clock.set_database_time(now);
        Ok(())
    }

    /// Lets go of every connection.
    pub async fn close(&self) {
        // A connection that hangs in a stalled statement must not hold up the exit.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.pool.close()).await;
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        let leased = async {
            loop {
                let regained = self.contact.regained();
                if self.contact.is_lost() {
                    regained.await;
                    continue;
                }
                tokio::select! {
                    biased;
                    conn = self.pool.acquire() => return conn,
                    // Whoever was connecting all the time waits in vain.
                    () = regained => {}
                }
            }
        };
        let conn = match tokio::time::timeout(ACQUIRE_MAX, leased).await {
            Ok(conn) => conn.map_err(|why| StoreError::from_sqlx("acquire", why))?,
            Err(_) => {
                let why = format!("no connection within {ACQUIRE_MAX:?}");
                return Err(StoreError::Away { op: "acquire", why });
            }
        };
        Ok(Lease { conn: Some(conn), is_clean: AtomicBool::new(true), contact: self.contact.clone() })
    }
}

/// Left to itself Postgres plans the hot statements anew each time, which takes longer than to carry them
/// out; and it reads the whole of a small table, all that vacuum has not removed from it included: under a
/// long transaction elsewhere that is all of its past.
const PLANS: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off";

/// A pool whose connections are asked whether they still live before they are lent, but only after a
/// rest: a busy one needs no round trip to prove itself, and one that slept through a restart or a
/// verdict must not fail the first to come. Those from before a break are not asked: a cut network
/// answers no question, and each would cost the next caller the time for one.
///
/// Postgres is told to plan statements once a connection, and by their indexes ([`PLANS`]). Behind a pooler
/// that lends connections out for a transaction each this is a wish, and nothing but speed depends on it.
fn pool(connections_max: u32, keeps_plans: bool, contact: &Arc<Contact>) -> PgPoolOptions {
    let contact = contact.clone();
    let prelude = if keeps_plans { PLANS } else { "" };
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_MAX)
        .max_lifetime(Duration::from_secs(1800))
        .test_before_acquire(false)
        .after_connect(move |conn, _| Box::pin(async move { conn.execute(prelude).await.map(drop) }))
        .before_acquire(move |conn, meta| {
            let is_stale = contact.was_lost_within(meta.age);
            Box::pin(async move {
                if is_stale || meta.idle_for < REST_MAX {
                    return Ok(!is_stale);
                }
                Ok(matches!(tokio::time::timeout(PING_MAX, conn.ping()).await, Ok(Ok(()))))
            })
        })
}

fn connect_options(url: &str, application_name: &str) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(|why| StoreError::from_sqlx("connect", why))?;
    Ok(options.application_name(application_name))
}

/// A pooled connection that is thrown away when a statement on it did not come back in time: what
/// is still under way on it would make the next user wait.
struct Lease {
    conn: Option<PoolConnection<Postgres>>,
    is_clean: AtomicBool,
    contact: Arc<Contact>,
}

impl Lease {
    async fn run<'c, T, F>(
        &'c mut self,
        op: &'static str,
        statement: impl FnOnce(&'c mut PgConnection) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, sqlx::Error>> + 'c,
    {
        let Some(conn) = self.conn.as_mut() else {
            return Err(StoreError::Away { op, why: "the connection was given up".to_owned() });
        };
        self.is_clean.store(false, Ordering::Relaxed);
        let began = Instant::now();
        let mut answer = pin!(tokio::time::timeout(STATEMENT_MAX, statement(conn)));
        let answer = tokio::select! {
            biased;
            answer = answer.as_mut() => answer,
            () = self.contact.regained() => match began.elapsed() < BREAK_MAX {
                true => answer.await,
                false => {
                    let why = "no answer before Postgres was away".to_owned();
                    return Err(StoreError::Away { op, why });
                }
            },
        };
        match answer {
            Ok(Ok(value)) => {
                self.contact.heard();
                self.is_clean.store(true, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(why)) => {
                let error = StoreError::from_sqlx(op, why);
                self.is_clean.store(!error.is_away(), Ordering::Relaxed);
                Err(error)
            }
            Err(_) => Err(StoreError::Away { op, why: format!("no answer within {STATEMENT_MAX:?}") }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_clean.load(Ordering::Relaxed)
            && let Some(conn) = self.conn.take()
        {
            drop(conn.detach());
        }
    }
}
