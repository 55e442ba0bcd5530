//! The store's handle: one replica's view of Postgres, shared by every statement and task of the store.
//!
//! A caller asks for the part that the caller needs, or for one statement on a pooled connection. [`super::open`] makes a
//! store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use sqlx::{Postgres, postgres::PgArguments, query::Query};

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
        row_query::RowQuery,
        session::Sessions,
    },
};
use crate::{clock::Clock, id::ReplicaId};

/// One replica's view of Postgres. Cheap to clone, and small: every stream holds one.
#[derive(Clone, Debug)]
pub struct Store(pub(super) Arc<StoreParts>);

/// The parts of a store.
#[derive(Debug)]
pub(super) struct StoreParts {
    pub(super) connections: Arc<Connections>,
    pub(super) sessions: Arc<Sessions>,
    /// Sessions that bypass the pooler, if a listener URL is configured.
    pub(super) listener_sessions: Sessions,
    pub(super) login: Arc<Login>,
    /// The login that bypasses the pooler; the same as `login` without a listener URL.
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
    pub(super) retain: Duration,
}

impl Store {
    /// The database's clock, which also mints ids.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Subscriptions of this process, and pending notifications for other replicas.
    pub fn wake(&self) -> &WakeUps {
        &self.0.wake
    }

    /// The queue of turns to be accepted.
    pub fn accept_batch(&self) -> &AcceptBatch {
        &self.0.accept_batch
    }

    /// Recent commits that this process has seen.
    pub fn seen_commits(&self) -> &SeenCommits {
        &self.0.seen_commits
    }

    /// How many times the beat's connection has broken. After each break commits may be missing (failover).
    pub fn breaks(&self) -> u64 {
        self.0.breaks.load(Ordering::Acquire)
    }

    /// The current id of this replica. The id changes when the replica was declared lost and registers again.
    pub fn replica(&self) -> ReplicaId {
        *self.0.replica.read()
    }

    /// Mints a new replica id, to register with after a verdict.
    pub fn rename_replica(&self) -> ReplicaId {
        let fresh = ReplicaId(self.0.clock.mint());
        *self.0.replica.write() = fresh;
        fresh
    }

    /// `application_name` of this process' Postgres sessions; unique per boot.
    pub fn application_name(&self) -> &str {
        &self.0.application_name
    }

    /// How long ended turns are retained.
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

    /// For tasks that keep a session of their own.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// As [`Store::sessions`], bypassing the pooler if a listener URL is configured.
    pub(super) fn listener_sessions(&self) -> &Sessions {
        &self.0.listener_sessions
    }

    /// Runs one statement on a pooled connection, and returns all rows.
    pub(super) async fn fetch_all<R: RowQuery>(
        &self,
        op: &'static str,
        query: R,
    ) -> Result<Vec<R::Row>, StoreError> {
        self.lease().await?.run(op, |c| query.all(c)).await
    }

    /// As [`Store::fetch_all`], the first row if there is any.
    pub(super) async fn fetch_optional<R: RowQuery>(
        &self,
        op: &'static str,
        query: R,
    ) -> Result<Option<R::Row>, StoreError> {
        self.lease().await?.run(op, |c| query.first(c)).await
    }

    /// As [`Store::fetch_all`] for a statement of one row.
    pub(super) async fn fetch_one<R: RowQuery>(
        &self,
        op: &'static str,
        query: R,
    ) -> Result<R::Row, StoreError> {
        let row = self.fetch_optional(op, query).await?;
        row.ok_or_else(|| StoreError::from_sqlx(op, sqlx::Error::RowNotFound))
    }

    /// As [`Store::fetch_all`] for a statement without rows. Returns how many rows it changed.
    pub(super) async fn execute(
        &self,
        op: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        let done = self.lease().await?.run(op, |c| query.execute(c)).await?;
        Ok(done.rows_affected())
    }

    /// Borrows a pooled connection.
    pub(super) async fn lease(&self) -> Result<Loan, StoreError> {
        self.0.connections.lend().await
    }
}
