//! Opening a store, and checks whether Postgres is reachable.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;

use super::{
    error::StoreError,
    handle::{Store, StoreParts},
    live::{
        accept_batch::AcceptBatch, agent_cache::AgentCache, blockers_told::BlockersTold,
        locked_turns::LockedTurns, read_batch::ReadBatch, seen_commits::SeenCommits, wake_ups::WakeUps,
    },
    pool::{
        connections::Connections,
        denial::Denial,
        gate::Gate,
        login::Login,
        reachability::Reachability,
        schema::Choice,
        session::{SessionPurpose, Sessions},
    },
};
use crate::{clock::Clock, config::Config, id::ReplicaId};

/// How long a rejected statement counts as a current denial. A replica repeats its statements more often than that.
const DENIAL_COUNTS_FOR: Duration = Duration::from_secs(5);

impl Store {
    /// Creates the store without connecting. Call [`Store::probe`] to check whether Postgres answers.
    pub fn open(config: &Config) -> Result<Store, StoreError> {
        let clock = Clock::default();
        let replica = ReplicaId(clock.mint());
        let application_name = format!("lastword {}", replica.0.as_simple());
        let choice = Arc::new(Choice::new(config.database_schema.clone()));
        let (reachability, gate) = (Arc::new(Reachability::default()), Arc::new(Gate::default()));
        let login = |url: &str, file: Option<&PathBuf>| {
            let file = file.map(PathBuf::as_path);
            Login::new(url, file, &application_name, gate.clone(), reachability.clone()).map(Arc::new)
        };
        let own_login = login(&config.database_url, config.database_url_file.as_ref())?;
        let listener_login = match &config.listener_database_url {
            Some(url) => login(url, config.listener_database_url_file.as_ref())?,
            None => own_login.clone(),
        };
        let sessions = |login: &Arc<Login>| Sessions::new(login.clone(), choice.clone());
        let (own, listener) = (Arc::new(sessions(&own_login)), sessions(&listener_login));
        let connections = Connections::new(own.clone(), config.pool_max, reachability.clone());
        Ok(Store(Arc::new(StoreParts {
            connections: Arc::new(connections),
            sessions: own,
            listener_sessions: listener,
            login: own_login,
            listener_login,
            clock,
            wake: WakeUps::new(config.doorbell, replica.0),
            seen_commits: SeenCommits::default(),
            read_batch: ReadBatch::default(),
            accept_batch: AcceptBatch::default(),
            agent_cache: AgentCache::default(),
            locked_turns: LockedTurns::default(),
            blockers_told: BlockersTold::default(),
            breaks: AtomicU64::default(),
            reachability,
            replica: RwLock::new(replica),
            application_name,
            retain: config.retain.0,
        })))
    }

    /// Reports that the beat's connection broke. Idle connections are closed: they are likely broken too, or occupy the
    /// last connections that Postgres has for the beat.
    pub fn note_break(&self) {
        self.0.reachability.lost();
        self.0.connections.forget();
        self.0.breaks.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether Postgres has answered any statement of this process within `time`.
    pub fn was_heard_within(&self, time: Duration) -> bool {
        self.0.reachability.was_heard_within(time)
    }

    /// What Postgres denies this process at present, by login or by right, and no retry cures; `None` if nothing.
    pub fn refusal(&self) -> Option<Denial> {
        let login = self.0.login.refusal().or_else(|| self.0.listener_login.refusal());
        login.or_else(|| self.0.reachability.denied_within(DENIAL_COUNTS_FOR))
    }

    /// Logs in with each configured database URL, and disconnects.
    ///
    /// # Errors
    /// Postgres is away, or denies the login.
    pub async fn knock(&self) -> Result<(), StoreError> {
        drop(self.0.sessions.open("connect", SessionPurpose::Work).await?);
        if !Arc::ptr_eq(&self.0.login, &self.0.listener_login) {
            drop(self.0.listener_sessions.open("connect", SessionPurpose::Work).await?);
        }
        Ok(())
    }

    /// Queries the database's time: proves that Postgres answers, and sets the clock's offset.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let query = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#);
        let now = self.fetch_one("probe", query).await?;
        self.0.clock.set_database_time(now);
        Ok(())
    }

    /// Closes every pooled connection.
    pub async fn close(&self) {
        self.0.connections.close().await;
    }
}
