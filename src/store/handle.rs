//! One replica's view of Postgres: what every statement and every task of the store needs.
//!
//! Owns no behaviour: who uses a part asks for that part. How a store is made is in [`super::open`].

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    error::StoreError,
    live::{
        accept_batch::AcceptBatch, agent_cache::AgentCache, blockers_told::BlockersTold,
        locked_turns::LockedTurns, read_batch::ReadBatch, seen_commits::SeenCommits, wake_ups::WakeUps,
    },
    pool::{
        connections::{Connections, Loan},
        login::Login,
        reachability::Reachability,
        session::Sessions,
    },
};
use crate::{clock::Clock, config::Lever, id::ReplicaId};

/// One replica's view of Postgres. Cheap to clone, and small: every stream has some.
#[derive(Clone, Debug)]
pub struct Store(pub(super) Arc<StoreParts>);

/// What a store is made of.
#[derive(Debug)]
pub(super) struct StoreParts {
    pub(super) connections: Arc<Connections>,
    pub(super) sessions: Arc<Sessions>,
    /// Past a pooler, where there is one.
    pub(super) listener_sessions: Sessions,
    pub(super) login: Arc<Login>,
    /// Past a pooler; the same where there is none.
    pub(super) listener_login: Arc<Login>,
    pub(super) clock: Clock,
    pub(super) wake: WakeUps,
    pub(super) seen_commits: SeenCommits,
    pub(super) read_batch: ReadBatch,
    pub(super) accept_batch: AcceptBatch,
    pub(super) agent_cache: AgentCache,
    pub(super) locked_turns: LockedTurns,
    pub(super) blockers_told: BlockersTold,
    pub(super) breaks: AtomicU64,
    pub(super) reachability: Arc<Reachability>,
    pub(super) replica: RwLock<ReplicaId>,
    pub(super) application_name: String,
    pub(super) ablated: Vec<Lever>,
    pub(super) retain: Duration,
}

impl Store {
    /// Whether this replica does something for speed that a measurement may take from it.
    pub fn uses(&self, lever: Lever) -> bool {
        !self.0.ablated.contains(&lever)
    }

    /// The database's clock, and the home of new ids.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Who waits for what in this process, and what is to be rung.
    pub fn wake(&self) -> &WakeUps {
        &self.0.wake
    }

    /// Where turns are handed in.
    pub fn accept_batch(&self) -> &AcceptBatch {
        &self.0.accept_batch
    }

    /// What this process has seen committed, of late.
    pub fn seen_commits(&self) -> &SeenCommits {
        &self.0.seen_commits
    }

    /// How often the beat's connection to Postgres has broken: after each, commits may be missing.
    pub fn breaks(&self) -> u64 {
        self.0.breaks.load(Ordering::Acquire)
    }

    /// Who this process is now. It changes when the replica was judged lost and starts over.
    pub fn replica(&self) -> ReplicaId {
        *self.0.replica.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new identity, to register anew with.
    pub fn rename_replica(&self) -> ReplicaId {
        let fresh = ReplicaId(self.0.clock.mint());
        *self.0.replica.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        fresh
    }

    /// What this process' backends call themselves; one name a boot.
    pub fn application_name(&self) -> &str {
        &self.0.application_name
    }

    /// How long ended turns are kept.
    pub(super) fn retain(&self) -> Duration {
        self.0.retain
    }

    pub(super) fn read_batch(&self) -> &ReadBatch {
        &self.0.read_batch
    }

    pub(super) fn agent_cache(&self) -> &AgentCache {
        &self.0.agent_cache
    }

    pub(super) fn locked_turns(&self) -> &LockedTurns {
        &self.0.locked_turns
    }

    pub(super) fn blockers_told(&self) -> &BlockersTold {
        &self.0.blockers_told
    }

    pub(super) fn reachability(&self) -> &Reachability {
        &self.0.reachability
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// For sessions of a task's own.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// The same past a pooler, where there is one.
    pub(super) fn listener_sessions(&self) -> &Sessions {
        &self.0.listener_sessions
    }

    /// A connection for statements.
    pub(super) async fn lease(&self) -> Result<Loan, StoreError> {
        self.0.connections.lend().await
    }
}
