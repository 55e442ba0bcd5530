//! Remote workers: registering, ending, and the tokens that let them in.
//!
//! A token is stored as its SHA-256, and told once, when it is minted.

use std::collections::HashMap;

use super::{Store, StoreError};
use crate::{
    failure::Code,
    id::{ConversationId, WorkerId},
    token::{self, Purpose, TokenHash},
};

/// A remote worker that calls.
#[derive(Debug, Clone)]
pub struct RemoteWorker {
    /// Its id; the same at every replica that it calls.
    pub id: WorkerId,
    /// Whose turns it runs.
    pub agent: String,
    /// The agent's revision when it called.
    pub agent_revision: i32,
    /// The only conversation that it serves, where it is bound to one.
    pub conversation: Option<ConversationId>,
    /// What its host calls itself.
    pub name: Option<String>,
}

/// What a minted token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The agent.
    pub agent: String,
    /// The conversation; `None`: any of the agent's.
    pub conversation: Option<ConversationId>,
}

/// Why a worker ended, as somebody found out who watched it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obituary {
    /// What its turn's last word says.
    pub code: Code,
    /// For a person.
    pub message: String,
    /// For operators.
    pub detail: Option<String>,
}

impl Store {
    /// Records a worker that calls here from now on; false where this id is another worker's.
    pub async fn register_worker(&self, worker: &RemoteWorker) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("register_worker", |c| {
                sqlx::query!(
                    "
                    insert into workers as w (id, replica_id, agent, agent_revision, runtime, conversation_id, name, state)
                    values ($1, $2, $3, $4, 'remote', $5, $6, 'ready')
                    on conflict (id) do update
                       set replica_id = excluded.replica_id, agent_revision = excluded.agent_revision,
                           -- Another replica may have taken it for lost meanwhile.
                           state = 'ready', ended_at = null, exit = null
                     where w.runtime = 'remote' and w.agent = excluded.agent and w.end_code is null
                       and w.conversation_id is not distinct from excluded.conversation_id
                    ",
                    worker.id.0,
                    self.replica().0,
                    worker.agent,
                    worker.agent_revision,
                    worker.conversation.map(|conversation| conversation.0),
                    worker.name,
                )
                .execute(c)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Records how a remote worker ended, where it has not turned to another replica.
    pub async fn remote_worker_ended(&self, id: WorkerId, exit: &str) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("remote_worker_ended", |c| {
                sqlx::query!(
                    "
                    update workers set state = 'ended', ended_at = clock_timestamp(), exit = $3
                     where id = $1 and replica_id = $2 and state <> 'ended'
                    ",
                    id.0,
                    self.replica().0,
                    exit
                )
                .execute(c)
            })
            .await?;
        Ok(())
    }

    /// Says why a worker ended: the one of this id, or, without one, each that is bound to the conversation.
    /// Whoever holds a turn of it makes that the last word. How many workers it was told of.
    pub async fn worker_gone(
        &self,
        id: Option<WorkerId>,
        conversation: Option<ConversationId>,
        why: &Obituary,
    ) -> Result<u64, StoreError> {
        let (conversation, code) = (conversation.map(|conversation| conversation.0), why.code.as_str());
        let mut lease = self.lease().await?;
        // A statement each: one for both would read all workers there ever were.
        let told = match id {
            Some(id) => lease.run("worker_gone", |c| {
                sqlx::query!(
                    "
                    update workers
                       set state = 'ended', ended_at = clock_timestamp(), exit = $2, end_code = $3, end_detail = $4
                     where id = $1 and runtime = 'remote' and end_code is null
                    ",
                    id.0,
                    why.message,
                    code,
                    why.detail,
                )
                .execute(c)
            }).await?,
            None => lease.run("workers_gone", |c| {
                sqlx::query!(
                    "
                    update workers
                       set state = 'ended', ended_at = clock_timestamp(), exit = $2, end_code = $3, end_detail = $4
                     where conversation_id = $1 and runtime = 'remote' and state <> 'ended' and end_code is null
                    ",
                    conversation,
                    why.message,
                    code,
                    why.detail,
                )
                .execute(c)
            }).await?,
        };
        self.wake().orders_left();
        Ok(told.rows_affected())
    }

    /// Of these workers, those of which somebody said why they ended.
    pub async fn obituaries(&self, workers: &[WorkerId]) -> Result<Vec<(WorkerId, Obituary)>, StoreError> {
        let ids: Vec<uuid::Uuid> = workers.iter().map(|worker| worker.0).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("obituaries", |c| {
                sqlx::query!(
                    r#"
                    select id, end_code as "code!", coalesce(exit, '') as "message!", end_detail
                      from workers where id = any ($1) and end_code is not null
                    "#,
                    &ids
                )
                .fetch_all(c)
            })
            .await?;
        let told = rows.into_iter().map(|row| {
            let code = Code::ALL.into_iter().find(|code| code.as_str() == row.code);
            let code = code.unwrap_or(Code::WorkerExited);
            (WorkerId(row.id), Obituary { code, message: row.message, detail: row.end_detail })
        });
        Ok(told.collect())
    }

    /// Mints a token that lets workers in, for this and nothing else. It is told here and never again.
    pub async fn mint_worker_token(&self, grant: &Grant) -> Result<String, StoreError> {
        let token = token::mint(Purpose::Worker);
        let token_hash = token::hash(&token);
        let mut lease = self.lease().await?;
        lease
            .run("grant_worker", |c| {
                sqlx::query!(
                    "
                    insert into worker_tokens (hash, agent, conversation_id) values ($1, $2, $3)
                    ",
                    &token_hash,
                    grant.agent,
                    grant.conversation.map(|conversation| conversation.0),
                )
                .execute(c)
            })
            .await?;
        Ok(token)
    }

    /// What the tokens of these hashes are good for, as far as they are good for anything.
    pub async fn worker_grants(&self, hashes: &[TokenHash]) -> Result<HashMap<TokenHash, Grant>, StoreError> {
        let hashes: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("worker_grants", |c| {
                sqlx::query!(
                    "select hash, agent, conversation_id from worker_tokens where hash = any ($1)",
                    &hashes
                )
                .fetch_all(c)
            })
            .await?;
        let grants = rows.into_iter().filter_map(|row| {
            let conversation = row.conversation_id.map(ConversationId);
            Some((row.hash.try_into().ok()?, Grant { agent: row.agent, conversation }))
        });
        Ok(grants.collect())
    }

    /// Lets in nobody any more by a token of this conversation.
    pub async fn revoke_worker_tokens(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("revoke_worker_tokens", |c| {
                sqlx::query!("delete from worker_tokens where conversation_id = $1", conversation.0)
                    .execute(c)
            })
            .await?;
        Ok(done.rows_affected())
    }

    /// Lets in nobody any more by the token of this hash.
    pub async fn revoke_worker_token(&self, token_hash: [u8; 32]) -> Result<u64, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("revoke_worker_token", |c| {
                sqlx::query!("delete from worker_tokens where hash = $1", &token_hash).execute(c)
            })
            .await?;
        Ok(done.rows_affected())
    }

    /// Removes what nobody asks for any more: offers of turns that ended a day ago.
    pub async fn sweep_remote(&self) -> Result<u64, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("sweep_remote", |c| {
                sqlx::query!(
                    "
                    delete from remote_claims where (turn_id, epoch) in (
                      select o.turn_id, o.epoch from remote_claims o
                       where o.claimed_at < clock_timestamp() - interval '1 day'
                         and not exists (select from inflight i where i.turn_id = o.turn_id)
                       order by o.claimed_at limit 1000)
                    "
                )
                .execute(c)
            })
            .await?;
        Ok(done.rows_affected())
    }
}
