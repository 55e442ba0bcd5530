//! Workers, for operators: list, show, stop.

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answer::Json,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Id, Maybe, NoParams, Nothing, Page, Params},
};
use crate::{
    agent::Runtime,
    id::{ConversationId, ReplicaId, TurnId, WorkerId},
    store::{word::WorkerState, workers::WorkerRow},
    word::Open,
};

/// A worker as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerView {
    /// `wrk_…`
    #[schema(value_type = String)]
    id: WorkerId,
    /// The name of the worker's agent.
    agent: String,
    /// The agent's runtime: `process`, `remote` or `kubernetes`.
    #[schema(value_type = String)]
    runtime: Open<Runtime>,
    /// The conversation that the worker serves; null for a shared worker.
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// The turn that the worker runs now; null for a shared worker.
    #[schema(value_type = Option<String>)]
    turn_id: Option<TurnId>,
    /// The number of turns that the worker runs now.
    turns: i64,
    /// The replica that hosts the worker.
    #[schema(value_type = String)]
    replica_id: ReplicaId,
    /// The process id, on the replica's machine.
    pid: Option<i32>,
    /// The pod, for the runtime `kubernetes`.
    pod: Option<String>,
    /// `starting`, `idle`, `busy` or `ended`.
    state: &'static str,
    /// When the worker was started.
    started_at: DateTime<Utc>,
    /// When the worker ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<DateTime<Utc>>,
    /// How the worker ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<String>,
    /// More detail about the end: for a pod, what Kubernetes reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The end of the worker's stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_tail: Option<String>,
}

impl From<WorkerRow> for WorkerView {
    fn from(row: WorkerRow) -> Self {
        let pod = row.name.filter(|_| row.runtime == Runtime::Kubernetes);
        WorkerView {
            id: row.id,
            agent: row.agent,
            runtime: row.runtime,
            conversation_id: row.conversation,
            turn_id: row.turn,
            turns: row.turns,
            replica_id: row.replica,
            pid: row.pid,
            pod,
            state: match (row.state, row.turns) {
                (Open::Known(state @ (WorkerState::Ended | WorkerState::Starting)), _) => state.as_str(),
                (_, 0) => "idle",
                (_, _) => "busy",
            },
            started_at: row.started_at,
            ended_at: row.ended_at,
            exit: row.exit,
            detail: row.detail,
            stderr_tail: row.stderr_tail,
        }
    }
}

/// Lists live workers, newest first.
#[utoipa::path(get, path = "/v1/workers", tag = "operators",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = Page<WorkerView>)))]
pub async fn list(
    State(gateway): State<Gateway>,
    mut params: Params,
) -> Result<Json<Page<WorkerView>>, Problem> {
    let (before, limit) = (params.parsed::<WorkerId>("cursor")?, params.limit()?);
    params.end()?;
    let rows = gateway.store.workers(before, limit + 1).await?;
    Ok(Json(Page::of(rows.into_iter().map(WorkerView::from).collect(), limit, |item: &WorkerView| {
        item.id.to_string()
    })))
}

/// Reads a worker, also one that has ended.
#[utoipa::path(get, path = "/v1/workers/{id}", tag = "operators", params(("id" = String, Path)),
    responses((status = 200, body = WorkerView), (status = 404, body = ProblemDocument)))]
pub async fn read(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<WorkerId>,
) -> Result<Json<WorkerView>, Problem> {
    found(&gateway, id).await.map(Json)
}

/// Stops a worker. Every turn that it runs is cancelled.
#[utoipa::path(post, path = "/v1/workers/{id}/stop", tag = "operators", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The worker has already ended", body = WorkerView),
        (status = 202, description = "The worker's replica was asked to stop the worker", body = WorkerView),
        (status = 404, body = ProblemDocument),
    ))]
pub async fn stop(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<WorkerId>,
    Maybe(Nothing {}): Maybe<Nothing>,
) -> Result<(StatusCode, Json<WorkerView>), Problem> {
    let is_asked = gateway.store.ask_stop(id).await?;
    let worker = found(&gateway, id).await?;
    tracing::info!(worker = %id, is_asked, "an operator stops a worker");
    Ok((if is_asked { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(worker)))
}

async fn found(gateway: &Gateway, id: WorkerId) -> Result<WorkerView, Problem> {
    gateway.store.worker(id).await?.map(WorkerView::from).ok_or_else(|| Problem::not_found("worker"))
}
