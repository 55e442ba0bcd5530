//! Tokens of workers: mint, list, revoke.
//!
//! Only a token's SHA-256 is stored; the token itself is shown once. The hash of a revoked or expired token is kept for
//! a day: from it each replica learns within a second which workers to reject (`docs/decisions/0027`).

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    id::{ConversationId, WorkerTokenId},
    store::{error::StoreError, handle::Store},
    token::{self, Purpose, TokenHash},
};

/// Most tokens that operators may have.
pub const TOKENS_MAX: i64 = 10_000;
/// The message of a turn whose worker's token has ended.
pub const ENDED: &str = "The worker handling your request is no longer admitted.";
/// A commit may become visible this long after its own timestamp.
const COMMIT_MAX: TimeDelta = TimeDelta::seconds(10);

/// What a token permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Workers of this agent.
    pub agent: String,
    /// Workers of this conversation only; `None`: of any conversation.
    pub conversation: Option<ConversationId>,
    /// Until this time; `None`: until revoked.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A token that an operator minted, without its secret.
#[derive(Debug, Clone)]
pub struct WorkerToken {
    /// The id to revoke the token by.
    pub id: WorkerTokenId,
    /// What the token permits.
    pub grant: Grant,
    /// When the token was minted.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// Mints a token without an id, for this grant. The secret is returned here and never again.
    pub async fn mint_worker_token(&self, grant: &Grant) -> Result<String, StoreError> {
        let token = token::mint(Purpose::Worker);
        let token_hash = token::hash(&token);
        let query = sqlx::query!(
            "
            insert into lastword.worker_tokens (hash, agent, conversation_id, expires_at) values ($1, $2, $3, $4)
            ",
            &token_hash,
            grant.agent,
            grant.conversation.map(|conversation| conversation.0),
            grant.expires_at,
        );
        self.execute("grant_worker", query).await?;
        Ok(token)
    }

    /// Mints a token with an id, for an operator; `None` at the limit of 10,000. Also returns how many tokens there
    /// are.
    pub async fn create_worker_token(
        &self,
        grant: &Grant,
    ) -> Result<Option<(WorkerToken, String, i64)>, StoreError> {
        let (token, id) = (token::mint(Purpose::Worker), WorkerTokenId(self.clock().mint()));
        let token_hash = token::hash(&token);
        let query = sqlx::query!(
            r#"
            with known as materialized (
              select count(*) as count from (select from lastword.worker_tokens where id is not null limit $6) t)
            insert into lastword.worker_tokens (hash, id, agent, conversation_id, expires_at)
            select $1, $2, $3, $4, $5 from known where known.count < $6
            returning created_at, (select count from known) as "count!"
            "#,
            &token_hash,
            id.0,
            grant.agent,
            grant.conversation.map(|conversation| conversation.0),
            grant.expires_at,
            TOKENS_MAX,
        );
        let made = self.fetch_optional("create_worker_token", query).await?;
        Ok(made.map(|made| {
            let known = WorkerToken { id, grant: grant.clone(), created_at: made.created_at };
            (known, token, made.count + 1)
        }))
    }

    /// Valid tokens that operators minted, newest first, before one.
    pub async fn worker_tokens(
        &self,
        before: Option<WorkerTokenId>,
        limit: i64,
    ) -> Result<Vec<WorkerToken>, StoreError> {
        let query = sqlx::query!(
            r#"
            select id as "id!", agent, conversation_id, expires_at, created_at
              from lastword.worker_tokens
             where id is not null and id < $1 and (expires_at is null or expires_at > clock_timestamp())
             order by id desc limit $2
            "#,
            before.map_or(uuid::Uuid::max(), |id| id.0),
            limit,
        );
        let rows = self.fetch_all("worker_tokens", query).await?;
        let known = rows.into_iter().map(|row| WorkerToken {
            id: WorkerTokenId(row.id),
            grant: Grant {
                agent: row.agent,
                conversation: row.conversation_id.map(ConversationId),
                expires_at: row.expires_at,
            },
            created_at: row.created_at,
        });
        Ok(known.collect())
    }

    /// The grants of valid tokens by hash. A hash that is missing from the answer is rejected.
    pub async fn worker_grants(&self, hashes: &[TokenHash]) -> Result<HashMap<TokenHash, Grant>, StoreError> {
        let hashes: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
        let query = sqlx::query!(
            "
            select hash, agent, conversation_id, expires_at from lastword.worker_tokens
             where hash = any ($1) and (expires_at is null or expires_at > clock_timestamp())
            ",
            &hashes
        );
        let rows = self.fetch_all("worker_grants", query).await?;
        let grants = rows.into_iter().filter_map(|row| {
            let (conversation, expires_at) = (row.conversation_id.map(ConversationId), row.expires_at);
            Some((row.hash.try_into().ok()?, Grant { agent: row.agent, conversation, expires_at }))
        });
        Ok(grants.collect())
    }

    /// Revokes the token of this id, and ends the workers that registered with it; false if there is none.
    pub async fn end_worker_token(&self, id: WorkerTokenId) -> Result<bool, StoreError> {
        Ok(self.end_worker_tokens(Some(id)).await? > 0)
    }

    /// As [`Store::end_worker_token`], for all expired tokens; returns how many.
    pub async fn end_expired_worker_tokens(&self) -> Result<i32, StoreError> {
        self.end_worker_tokens(None).await
    }

    async fn end_worker_tokens(&self, id: Option<WorkerTokenId>) -> Result<i32, StoreError> {
        let mut lease = self.lease().await?;
        let ended = lease
            .run("end_worker_tokens", |c| {
                let id = id.map(|id| id.0);
                sqlx::query_scalar!(
                    r#"select lastword.lw_worker_tokens_end_v1($1, $2) as "ended!""#,
                    id,
                    ENDED
                )
                .fetch_one(c)
            })
            .await?;
        if ended > 0 {
            // The holders of these workers' turns have to read the exit reports.
            self.wake().orders_left();
        }
        Ok(ended)
    }

    /// Hashes of tokens that have ended since then, or up to 10 s before.
    pub async fn worker_tokens_ended(&self, since: DateTime<Utc>) -> Result<Vec<TokenHash>, StoreError> {
        let query = sqlx::query_scalar!(
            "select hash from lastword.worker_tokens_ended where ended_at >= $1 order by ended_at",
            since - COMMIT_MAX
        );
        let hashes = self.fetch_all("worker_tokens_ended", query).await?;
        Ok(hashes.into_iter().filter_map(|hash| hash.try_into().ok()).collect())
    }

    /// Deletes this conversation's tokens without an id: they authenticate nobody any more.
    pub async fn revoke_worker_tokens(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        let query = sqlx::query!(
            "delete from lastword.worker_tokens where conversation_id = $1 and id is null",
            conversation.0
        );
        let changed = self.execute("revoke_worker_tokens", query).await?;
        Ok(changed)
    }

    /// Deletes the token of this hash: it authenticates nobody any more.
    pub async fn revoke_worker_token(&self, token_hash: TokenHash) -> Result<u64, StoreError> {
        let query = sqlx::query!("delete from lastword.worker_tokens where hash = $1", &token_hash);
        let changed = self.execute("revoke_worker_token", query).await?;
        Ok(changed)
    }
}
