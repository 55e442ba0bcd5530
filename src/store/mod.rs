//! The store: all SQL, and the doorbell. The only place that imports `sqlx`.
//!
//! Owns the connections of one replica, the statements (one file a table), the group-commit
//! [`writer`] and the doorbell ([`wake`]). Refuses client round trips inside a transaction: each
//! call here is one statement or one SQL function, so a process that freezes in the middle hides
//! nothing from the others for longer than its statement takes.
//!
//! One order of locks: rows of one kind by their ids; keys, then in-flight rows, then conversations
//! (`docs/PROTOCOL.md`).
//!
//! Every statement has a deadline. One that fails or is given up on may or may not have been
//! committed; callers that repeat do so with the identical statement, which is harmless.

pub mod accept;
pub mod adoption;
pub mod agents;
pub mod assignment;
pub mod beat;
pub mod blockers;
mod bounds;
pub mod claim;
pub mod closing;
pub mod commands;
mod conn;
mod connections;
mod contact;
pub mod conversations;
pub mod denial;
pub mod desk;
pub mod doctor;
pub mod error;
pub mod events;
mod gate;
#[cfg(feature = "dev")]
pub mod gauges;
#[cfg(feature = "dev")]
pub mod history;
pub mod inflight;
pub mod intake;
#[cfg(feature = "dev")]
pub mod limits;
pub mod listener;
pub mod lists;
mod locked;
mod login;
pub mod lookout;
#[cfg(feature = "dev")]
pub mod mass;
pub mod migrate;
mod outage;
pub mod pages;
pub mod partitions;
pub mod past;
pub mod queue;
pub mod reader;
mod recent;
pub mod remote_turns;
pub mod remote_workers;
pub mod replicas;
pub mod rewound;
pub mod ring;
pub mod ringer;
pub mod schema;
mod session;
pub mod sweep;
pub mod threads;
mod tls;
pub mod turns;
pub mod verify;
pub mod wake;
pub mod witness;
pub mod worker_tokens;
pub mod workers;
pub mod writer;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;

use agents::Remembered;
use blockers::Told;
use conn::Conn;
use connections::{Connections, Lease};
use contact::Contact;
use denial::Denial;
use desk::Desk;
pub use error::StoreError;
pub(crate) use error::warn_of;
use gate::Gate;
use intake::Intake;
use locked::PassedOver;
use login::Login;
use reader::Reads;
use schema::Choice;
use session::{Purpose, Sessions};
use wake::Wake;
use witness::Witness;

use crate::{
    clock::Clock,
    config::{Config, Lever},
    id::ReplicaId,
};

/// A statement that was denied counts for so long: all that a replica asks for it asks again sooner.
const DENIAL_COUNTS_FOR: Duration = Duration::from_secs(5);

/// One replica's view of Postgres. Cheap to clone, and small: every stream has some.
#[derive(Clone, Debug)]
pub struct Store(Arc<Parts>);

/// What a store is made of.
#[derive(Debug)]
pub struct Parts {
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
    /// Past a pooler, where there is one.
    listener_sessions: Sessions,
    login: Arc<Login>,
    /// Past a pooler; the same where there is none.
    listener_login: Arc<Login>,
    clock: Clock,
    wake: Arc<Wake>,
    witness: Witness,
    reads: Reads,
    intake: Intake,
    desk: Arc<Desk>,
    remembered: Remembered,
    passed: PassedOver,
    told: Told,
    breaks: AtomicU64,
    contact: Arc<Contact>,
    replica: RwLock<ReplicaId>,
    application_name: String,
    ablated: Vec<Lever>,
    retain: Duration,
}

impl std::ops::Deref for Store {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Store {
    /// Opens nothing yet. Needs no reachable Postgres; [`Store::probe`] tells whether there is one.
    pub fn open(config: &Config) -> Result<Store, StoreError> {
        let clock = Clock::default();
        let replica = ReplicaId(clock.mint());
        let application_name = format!("lastword {}", replica.0.as_simple());
        let keeps_plans = !config.ablate.contains(&Lever::KeptPlans);
        let choice = Arc::new(Choice::new(config.database_schema.clone()));
        let (contact, gate) = (Arc::new(Contact::default()), Arc::new(Gate::default()));
        let login = |url: &str, file: Option<&PathBuf>| {
            let file = file.map(PathBuf::as_path);
            Login::new(url, file, &application_name, gate.clone(), contact.clone()).map(Arc::new)
        };
        let own_login = login(&config.database_url, config.database_url_file.as_ref())?;
        let listener_login = match &config.listener_database_url {
            Some(url) => login(url, config.listener_database_url_file.as_ref())?,
            None => own_login.clone(),
        };
        let sessions = |login: &Arc<Login>| Sessions::new(login.clone(), keeps_plans, choice.clone());
        let (own, listener) = (Arc::new(sessions(&own_login)), sessions(&listener_login));
        let connections = Connections::new(own.clone(), config.pool_max, contact.clone());
        Ok(Store(Arc::new(Parts {
            connections: Arc::new(connections),
            sessions: own,
            listener_sessions: listener,
            login: own_login,
            listener_login,
            clock,
            wake: Arc::new(Wake::new(config.doorbell, replica.0)),
            witness: Witness::default(),
            reads: Reads::default(),
            intake: Intake::default(),
            desk: Arc::default(),
            remembered: Remembered::default(),
            passed: PassedOver::default(),
            told: Told::default(),
            breaks: AtomicU64::default(),
            contact,
            replica: RwLock::new(replica),
            application_name,
            ablated: config.ablate.clone(),
            retain: config.retain.0,
        })))
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
        self.connections.forget();
        self.breaks.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether Postgres has answered this process within so long.
    pub fn was_heard_within(&self, time: Duration) -> bool {
        self.contact.was_heard_within(time)
    }

    /// What Postgres denies this process just now, and no wait heals: the login, or a right.
    pub fn refusal(&self) -> Option<Denial> {
        let login = self.login.refusal().or_else(|| self.listener_login.refusal());
        login.or_else(|| self.contact.denied_within(DENIAL_COUNTS_FOR))
    }

    /// Logs in by each database URL, and lets go again.
    ///
    /// # Errors
    /// Postgres is away, or denies the login.
    pub async fn knock(&self) -> Result<(), StoreError> {
        drop(self.sessions.open("connect", Purpose::Work).await?);
        if !Arc::ptr_eq(&self.login, &self.listener_login) {
            drop(self.listener_sessions.open("connect", Purpose::Work).await?);
        }
        Ok(())
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
        self.connections.close().await;
    }

    /// A session of a task's own.
    async fn session(&self, op: &'static str, purpose: Purpose) -> Result<Conn, StoreError> {
        self.sessions.open(op, purpose).await
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        self.connections.lend().await
    }
}

fn connect_options(url: &str, application_name: &str) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(|why| StoreError::from_sqlx("connect", why))?;
    Ok(options.application_name(application_name))
}
