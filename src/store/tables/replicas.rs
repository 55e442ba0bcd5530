//! Replicas: register, judge, drain, leave, list.
//!
//! ```text
//! ready ──drain──► draining ──leave──► left
//!   └──────┬──────────┘
//!       verdict ──► lost
//! ```
//! `lost` and `left` are final: a replica that was declared lost registers again under a new id. The beat, and the
//! evidence of a verdict, are in [`super::beat`].

use chrono::{DateTime, Utc};

use super::beat::Judged;
use crate::{
    id::ReplicaId,
    store::{
        error::StoreError,
        handle::Store,
        records::word::{ReplicaStatus, Stored},
    },
    word::Open,
};

/// A replica as operators see it.
#[derive(Debug, Clone)]
pub struct ReplicaRow {
    /// The replica's id.
    pub id: ReplicaId,
    /// The URL of the replica.
    pub url: String,
    /// The replica's process id.
    pub pid: i32,
    /// The replica's release.
    pub version: String,
    /// The replica's state.
    pub state: Open<ReplicaStatus>,
    /// When the replica registered.
    pub started_at: DateTime<Utc>,
    /// The time of its newest beat.
    pub beat_at: DateTime<Utc>,
    /// How many turns the replica holds.
    pub turns: i64,
}

impl Store {
    /// Registers this process under its current id. The listener must hold the session lock by then. `timeline`: the
    /// one on which this process last compared what it had seen.
    pub async fn register(&self, url: &str, timeline: i32) -> Result<(), StoreError> {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let query = sqlx::query!(
            "
            insert into lastword.replicas (id, url, pid, version, application_name, lock_key, timeline)
            values ($1, $2, $3, $4, $5, $6, $7)
            on conflict (id) do nothing
            ",
            self.replica().0,
            url,
            pid,
            env!("CARGO_PKG_VERSION"),
            self.application_name(),
            self.wake().lock_key(),
            timeline
        );
        self.execute("register", query).await?;
        Ok(())
    }

    /// Marks this replica as draining, so that it claims no more; false if it was declared lost before.
    pub async fn start_drain(&self) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "update lastword.replicas set state = 'draining' where id = $1 and state = 'ready'",
            self.replica().0
        );
        let changed = self.execute("start_drain", query).await?;
        Ok(changed == 1)
    }

    /// Marks this replica as left: its last statement. What it still holds may be closed at once.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "
            update lastword.replicas set state = 'left', gone_at = clock_timestamp()
             where id = $1 and state in ('ready', 'draining')
            ",
            self.replica().0
        );
        self.execute("leave", query).await?;
        self.wake().holder_gone();
        Ok(())
    }

    /// Cleans up after a lost replica: terminates its backends, which may hold row locks while they wait for a frozen
    /// client, and marks its workers as ended.
    pub async fn clear_away(&self, judged: &Judged) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("terminate", |c| {
                sqlx::query!(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1",
                    judged.application_name
                )
                .fetch_one(c)
            })
            .await?;
        lease
            .run("workers_gone", |c| {
                sqlx::query!(
                    "
                    update lastword.workers
                       set state = 'ended', ended_at = clock_timestamp(), exit = 'its replica is gone'
                     where replica_id = $1 and state <> 'ended'
                    ",
                    judged.id.0
                )
                .execute(c)
            })
            .await?;
        Ok(())
    }

    /// Replicas, newest first, before one: those that are alive, and those gone within the last hour.
    pub async fn replicas(
        &self,
        before: Option<ReplicaId>,
        limit: i64,
    ) -> Result<Vec<ReplicaRow>, StoreError> {
        let query = sqlx::query!(
            r#"
            select r.id, r.url, r.pid, r.version, r.state as "state: Stored<Open<ReplicaStatus>>", r.started_at, r.beat_at,
                   coalesce(i.turns, 0) as "turns!"
              from lastword.replicas r
              -- All of them at once: not the whole of it for each replica.
              left join (
                select replica, count(*) as turns from lastword.inflight where replica is not null group by replica) i
                on i.replica = r.id
             where r.id < $1
               and (r.gone_at is null or r.gone_at > clock_timestamp() - interval '1 hour')
             order by r.id desc
             limit $2
            "#,
            before.map_or(uuid::Uuid::max(), |replica| replica.0),
            limit
        );
        let rows = self.fetch_all("replicas", query).await?;
        Ok(rows
            .into_iter()
            .map(|row| ReplicaRow {
                id: ReplicaId(row.id),
                url: row.url,
                pid: row.pid,
                version: row.version,
                state: row.state.0,
                started_at: row.started_at,
                beat_at: row.beat_at,
                turns: row.turns,
            })
            .collect())
    }
}
