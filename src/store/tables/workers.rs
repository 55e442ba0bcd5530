//! Workers, for operators. Which turns a worker runs is read from the in-flight rows.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    agent::Runtime,
    id::{ConversationId, ReplicaId, TurnId, WorkerId},
    store::{
        error::StoreError,
        handle::Store,
        records::word::{Stored, WorkerState},
    },
    word::Open,
};

/// A worker that is being started.
#[derive(Debug, Clone)]
pub struct NewWorker {
    /// The worker's id.
    pub id: WorkerId,
    /// The agent's name.
    pub agent: String,
    /// The agent's revision.
    pub agent_revision: i32,
    /// The agent's runtime.
    pub runtime: Runtime,
    /// The conversation that the worker serves; `None` for a shared worker.
    pub conversation: Option<ConversationId>,
    /// The worker's process id.
    pub pid: i32,
}

/// A worker as operators see it.
#[derive(Debug, Clone)]
pub struct WorkerRow {
    /// The worker's id.
    pub id: WorkerId,
    /// The replica that hosts the worker, or that the remote worker calls.
    pub replica: ReplicaId,
    /// The agent's name.
    pub agent: String,
    /// The agent's runtime.
    pub runtime: Open<Runtime>,
    /// The conversation that the worker serves; `None` for a shared worker.
    pub conversation: Option<ConversationId>,
    /// The turn that the worker runs now; `None` for a shared worker, which may run many.
    pub turn: Option<TurnId>,
    /// How many turns the worker runs now.
    pub turns: i64,
    /// The worker's process id.
    pub pid: Option<i32>,
    /// The name that a remote worker's host gave; the pod's name in a pod.
    pub name: Option<String>,
    /// The worker's state.
    pub state: Open<WorkerState>,
    /// When the worker was started.
    pub started_at: DateTime<Utc>,
    /// When the worker ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// How the worker ended.
    pub exit: Option<String>,
    /// Details of the end, if reported; for a pod, what Kubernetes said.
    pub detail: Option<String>,
    /// The end of the worker's stderr.
    pub stderr_tail: Option<String>,
}

impl Store {
    /// Records a worker that was started.
    pub async fn worker_started(&self, new: &NewWorker) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "
            insert into lastword.workers (id, replica_id, agent, agent_revision, runtime, conversation_id, pid)
            values ($1, $2, $3, $4, $5, $6, $7)
            on conflict (id) do nothing
            ",
            new.id.0,
            self.replica().0,
            new.agent,
            new.agent_revision,
            Stored(new.runtime) as Stored<Runtime>,
            new.conversation.map(|conversation| conversation.0),
            new.pid
        );
        self.execute("worker_started", query).await?;
        Ok(())
    }

    /// Records that a worker is ready.
    pub async fn worker_ready(&self, id: WorkerId) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "update lastword.workers set state = 'ready' where id = $1 and state = 'starting'",
            id.0
        );
        self.execute("worker_ready", query).await?;
        Ok(())
    }

    /// Records how a worker ended.
    pub async fn worker_ended(&self, id: WorkerId, exit: &str, stderr_tail: &str) -> Result<(), StoreError> {
        // Postgres' text type cannot hold NUL, which stderr may contain.
        let tail = stderr_tail.replace('\0', "\u{fffd}");
        let query = sqlx::query!(
            "
            update lastword.workers
               set state = 'ended', ended_at = clock_timestamp(), exit = $2, stderr_tail = $3
             where id = $1 and state <> 'ended'
            ",
            id.0,
            exit,
            tail
        );
        self.execute("worker_ended", query).await?;
        Ok(())
    }

    /// Live workers, newest first, before one, at most `limit`.
    pub async fn workers(&self, before: Option<WorkerId>, limit: i64) -> Result<Vec<WorkerRow>, StoreError> {
        let before = before.map_or(Uuid::max(), |worker| worker.0);
        let mut lease = self.lease().await?;
        let ids = lease
            .run("workers", |c| {
                sqlx::query_scalar!(
                    r#"
                    select w.id as "id!"
                      from lastword.replicas r
                     cross join lateral (
                       -- By the index of those that live: of the others there may be very many.
                       select w.id from lastword.workers w
                        where w.replica_id = r.id and w.state <> 'ended' and w.id < $1 limit 100000) w
                     order by w.id desc
                     limit $2
                    "#,
                    before,
                    limit
                )
                .fetch_all(c)
            })
            .await?;
        drop(lease);
        let rows = self.workers_of(&ids).await?;
        Ok(rows.into_iter().filter(|row| row.state != WorkerState::Ended).collect())
    }

    /// One worker, even if it has ended.
    pub async fn worker(&self, id: WorkerId) -> Result<Option<WorkerRow>, StoreError> {
        Ok(self.workers_of(&[id.0]).await?.pop())
    }

    async fn workers_of(&self, ids: &[Uuid]) -> Result<Vec<WorkerRow>, StoreError> {
        let query = sqlx::query!(
            r#"
            select w.id, w.replica_id, w.agent, w.conversation_id,
                   -- One that calls is recorded as `remote`; whether from a pod, its agent says.
                   coalesce(case w.runtime when 'remote' then (
                     select a.spec::jsonb ->> 'runtime' from lastword.agents a
                      where a.name = w.agent and a.revision = w.agent_revision) end,
                     w.runtime) as "runtime!: Stored<Open<Runtime>>",
                   case when w.conversation_id is not null then i.turn_id end as "turn_id?",
                   coalesce(i.turns, 0) as "turns!",
                   w.pid, w.name, w.state as "state: Stored<Open<WorkerState>>", w.started_at, w.ended_at, w.exit,
                   w.end_detail, w.stderr_tail
              from lastword.workers w
              left join (
                select worker, count(*) as turns, (array_agg(turn_id))[1] as turn_id
                  from lastword.inflight
                 where worker is not null
                 group by worker) i on i.worker = w.id and w.state <> 'ended'
             where w.id = any ($1)
             order by w.id desc
            "#,
            ids
        );
        let rows = self.fetch_all("workers", query).await?;
        Ok(rows
            .into_iter()
            .map(|row| WorkerRow {
                id: WorkerId(row.id),
                replica: ReplicaId(row.replica_id),
                agent: row.agent,
                runtime: row.runtime.0,
                conversation: row.conversation_id.map(ConversationId),
                turn: row.turn_id.map(TurnId),
                turns: row.turns,
                pid: row.pid,
                name: row.name,
                state: row.state.0,
                started_at: row.started_at,
                ended_at: row.ended_at,
                exit: row.exit,
                detail: row.end_detail,
                stderr_tail: row.stderr_tail,
            })
            .collect())
    }
}
