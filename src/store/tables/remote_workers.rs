//! Remote workers: register, end, exit reports.
//!
//! A worker belongs to the token that registered it: another token cannot call as the same worker.

pub use crate::host::process::ExitReport;
use crate::{
    failure::Code,
    id::{ConversationId, WorkerId},
    store::{error::StoreError, handle::Store, records::word::Stored, upkeep::sweep::BATCH_REST},
    token::TokenHash,
    word::Open,
};

/// A remote worker.
#[derive(Debug, Clone)]
pub struct RemoteWorker {
    /// The worker's id, the same at every replica.
    pub id: WorkerId,
    /// The agent whose turns it runs.
    pub agent: String,
    /// The agent's revision when the worker registered.
    pub agent_revision: i32,
    /// The only conversation that the worker serves, if it is bound to one.
    pub conversation: Option<ConversationId>,
    /// The name that the worker's host gave.
    pub name: Option<String>,
}

/// The result of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// The worker is registered at this replica.
    Done,
    /// The worker has ended, or the id belongs to another worker.
    Gone,
    /// The worker was registered with another token.
    AnothersToken,
}

impl Store {
    /// Registers a worker at this replica, with a token of this hash.
    pub async fn register_worker(
        &self,
        worker: &RemoteWorker,
        token_hash: TokenHash,
    ) -> Result<Registration, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("register_worker", |c| {
                sqlx::query!(
                    "
                    insert into lastword.workers as w
                      (id, replica_id, agent, agent_revision, runtime, conversation_id, name, state, token_hash)
                    values ($1, $2, $3, $4, 'remote', $5, $6, 'ready', $7)
                    on conflict (id) do update
                       set replica_id = excluded.replica_id, agent_revision = excluded.agent_revision,
                           token_hash = excluded.token_hash,
                           -- Another replica may have taken it for lost meanwhile.
                           state = 'ready', ended_at = null, exit = null
                     where w.runtime = 'remote' and w.agent = excluded.agent and w.end_code is null
                       and w.conversation_id is not distinct from excluded.conversation_id
                       and (w.token_hash is null or w.token_hash = excluded.token_hash)
                    ",
                    worker.id.0,
                    self.replica().0,
                    worker.agent,
                    worker.agent_revision,
                    worker.conversation.map(|conversation| conversation.0),
                    worker.name,
                    &token_hash,
                )
                .execute(c)
            })
            .await?;
        if done.rows_affected() == 1 {
            return Ok(Registration::Done);
        }
        let is_anothers = lease
            .run("worker_principal", |c| {
                sqlx::query_scalar!(
                    r#"select token_hash <> $2 as "is!" from lastword.workers where id = $1 and token_hash is not null"#,
                    worker.id.0,
                    &token_hash,
                )
                .fetch_optional(c)
            })
            .await?;
        Ok(if is_anothers == Some(true) { Registration::AnothersToken } else { Registration::Gone })
    }

    /// Records how a remote worker ended, unless it has registered at another replica.
    pub async fn remote_worker_ended(&self, id: WorkerId, exit: &str) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "
            update lastword.workers set state = 'ended', ended_at = clock_timestamp(), exit = $3
             where id = $1 and replica_id = $2 and state <> 'ended'
            ",
            id.0,
            self.replica().0,
            exit
        );
        self.execute("remote_worker_ended", query).await?;
        Ok(())
    }

    /// Reports why a worker exited: the worker `id` or, without one, every worker bound to the conversation. The
    /// holders of their turns end these with the reported reason. Returns how many workers were found.
    pub async fn worker_gone(
        &self,
        id: Option<WorkerId>,
        conversation: Option<ConversationId>,
        why: &ExitReport,
    ) -> Result<u64, StoreError> {
        let (conversation, code) = (conversation.map(|conversation| conversation.0), Stored(why.code));
        let mut lease = self.lease().await?;
        // Two statements: a common one would scan all workers, including those that ended long ago.
        let told = match id {
            Some(id) => lease.run("worker_gone", |c| {
                sqlx::query!(
                    "
                    update lastword.workers
                       set state = 'ended', ended_at = clock_timestamp(), exit = $2, end_code = $3, end_detail = $4
                     where id = $1 and runtime = 'remote' and end_code is null
                    ",
                    id.0,
                    why.message,
                    code as Stored<Code>,
                    why.detail,
                )
                .execute(c)
            }).await?,
            None => lease.run("workers_gone", |c| {
                sqlx::query!(
                    "
                    update lastword.workers
                       set state = 'ended', ended_at = clock_timestamp(), exit = $2, end_code = $3, end_detail = $4
                     where conversation_id = $1 and runtime = 'remote' and state <> 'ended' and end_code is null
                    ",
                    conversation,
                    why.message,
                    code as Stored<Code>,
                    why.detail,
                )
                .execute(c)
            }).await?,
        };
        self.wake().orders_left();
        Ok(told.rows_affected())
    }

    /// The exit reports of these workers, as far as there are any.
    pub async fn exit_reports(
        &self,
        workers: &[WorkerId],
    ) -> Result<Vec<(WorkerId, ExitReport)>, StoreError> {
        let ids: Vec<uuid::Uuid> = workers.iter().map(|worker| worker.0).collect();
        let query = sqlx::query!(
            r#"
            select id, end_code as "code!: Stored<Open<Code>>", coalesce(exit, '') as "message!", end_detail
              from lastword.workers where id = any ($1) and end_code is not null
            "#,
            &ids
        );
        let rows = self.fetch_all("exit_reports", query).await?;
        let told = rows.into_iter().map(|row| {
            let code = row.code.0.known().unwrap_or(Code::WorkerExited);
            (WorkerId(row.id), ExitReport { code, message: row.message, detail: row.end_detail })
        });
        Ok(told.collect())
    }

    /// Deletes up to 5000 claims of ended turns and 1000 hashes of ended tokens, after at most one day.
    pub async fn sweep_remote(&self) -> Result<u64, StoreError> {
        let query = sqlx::query!(
            "
            with t as (
              delete from lastword.worker_tokens_ended where hash in (
                select hash from lastword.worker_tokens_ended
                 where ended_at < clock_timestamp() - interval '1 day' order by ended_at limit 1000))
            delete from lastword.remote_claims where (turn_id, epoch) in (
              select o.turn_id, o.epoch from lastword.remote_claims o
               where o.claimed_at
                     < clock_timestamp() - least(interval '1 day', greatest(interval '1 hour', $1 * interval '1 s'))
                 and not exists (select from lastword.inflight i where i.turn_id = o.turn_id)
               order by o.claimed_at limit $2)
            ",
            self.retain().as_secs_f64(),
            i64::try_from(BATCH_REST).unwrap_or(i64::MAX)
        );
        let changed = self.execute("sweep_remote", query).await?;
        Ok(changed)
    }
}
