//! Worker tokens, for operators: mint, list, revoke.
//!
//! The secret of a token is shown once, in the response that mints it.

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    answer::Json,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Id, NoParams, Page, Params, Strict, agent_name},
};
use crate::{
    id::{ConversationId, WorkerTokenId},
    store::worker_tokens::{Grant, TOKENS_MAX, WorkerToken},
    telemetry::metrics,
    units::Span,
};

/// A request for a new token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerTokenRequest {
    /// The agent whose turns the workers may run.
    agent: String,
    /// The only conversation that the workers may serve.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// The token's lifetime, such as `90d`. If absent, the token is valid until it is revoked.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    expires: Option<Span>,
}

/// A token as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerTokenView {
    /// `wtk_…`; it gives no access.
    #[schema(value_type = String)]
    id: WorkerTokenId,
    /// The agent whose turns the workers may run.
    agent: String,
    /// The only conversation that the workers may serve.
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// When the token was minted.
    created_at: DateTime<Utc>,
    /// When the token expires; null: never, only if revoked.
    expires_at: Option<DateTime<Utc>>,
}

/// A new token.
#[derive(Debug, Serialize, ToSchema)]
pub struct MintedWorkerToken {
    /// The token itself; shown only here.
    token: String,
    #[serde(flatten)]
    known: WorkerTokenView,
}

impl From<WorkerToken> for WorkerTokenView {
    fn from(known: WorkerToken) -> Self {
        let WorkerToken { id, grant: Grant { agent, conversation, expires_at }, created_at } = known;
        WorkerTokenView { id, agent, conversation_id: conversation, created_at, expires_at }
    }
}

/// Mints a token that lets only this agent's workers in.
#[utoipa::path(post, path = "/v1/worker-tokens", tag = "operators", request_body = WorkerTokenRequest,
    responses(
        (status = 201, body = MintedWorkerToken),
        (status = 404, description = "No such agent whose workers call, or no such conversation of the agent",
            body = ProblemDocument),
        (status = 409, description = "`worker_tokens_full`: revoke some first", body = ProblemDocument),
    ))]
pub async fn create(
    State(gateway): State<Gateway>,
    _: NoParams,
    Strict(request): Strict<WorkerTokenRequest>,
) -> Result<(StatusCode, Json<MintedWorkerToken>), Problem> {
    let agent = agent_name("agent", request.agent)?;
    let expires_at = match request.expires {
        None => None,
        Some(Span(span)) => {
            let end = TimeDelta::from_std(span).ok();
            let end = end.and_then(|span| gateway.store.clock().now().checked_add_signed(span));
            let end = end.filter(|_| !span.is_zero());
            Some(end.ok_or_else(|| Problem::invalid("expires", "It must be a span of time, such as 90d."))?)
        }
    };
    let found = gateway.store.agent(&agent).await?.map(|row| row.agent);
    if !found.is_some_and(|agent| agent.spec.runtime.is_called()) {
        return Err(Problem::not_found("agent"));
    }
    if let Some(id) = request.conversation_id {
        let conversation = gateway.store.conversation(id).await?;
        if conversation.is_none_or(|conversation| conversation.agent != agent) {
            return Err(Problem::not_found("conversation"));
        }
    }
    let grant = Grant { agent, conversation: request.conversation_id, expires_at };
    let made = gateway.store.create_worker_token(&grant).await?;
    let (known, token, count) = made.ok_or_else(Problem::worker_tokens_full)?;
    metrics::bound("worker_tokens", count.unsigned_abs(), TOKENS_MAX.unsigned_abs());
    tracing::info!(id = %known.id, agent = known.grant.agent, "an operator mints a worker token");
    Ok((StatusCode::CREATED, Json(MintedWorkerToken { token, known: known.into() })))
}

/// Lists valid tokens that operators have minted, newest first.
#[utoipa::path(get, path = "/v1/worker-tokens", tag = "operators",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = Page<WorkerTokenView>)))]
pub async fn list(
    State(gateway): State<Gateway>,
    mut params: Params,
) -> Result<Json<Page<WorkerTokenView>>, Problem> {
    let (before, limit) = (params.parsed::<WorkerTokenId>("cursor")?, params.limit()?);
    params.end()?;
    let known = gateway.store.worker_tokens(before, limit + 1).await?;
    let items = known.into_iter().map(WorkerTokenView::from).collect();
    Ok(Json(Page::of(items, limit, |item: &WorkerTokenView| item.id.to_string())))
}

/// Revokes a token. Its workers are refused from now on, and their turns end as `worker_lost`.
#[utoipa::path(delete, path = "/v1/worker-tokens/{id}", tag = "operators", params(("id" = String, Path)),
    responses(
        (status = 204, description = "The token is no longer valid"),
        (status = 404, description = "`worker_token_not_found`: no such token, or already revoked",
            body = ProblemDocument),
    ))]
pub async fn revoke(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<WorkerTokenId>,
) -> Result<StatusCode, Problem> {
    if !gateway.store.end_worker_token(id).await? {
        return Err(Problem::not_found("worker_token"));
    }
    tracing::info!(%id, "an operator revokes a worker token");
    Ok(StatusCode::NO_CONTENT)
}
