//! Agents: put, read, list, delete.
//!
//! A client sees the names of agents, and the limits that apply to its turns. Only operators see commands,
//! environments and guard patterns: commands and environments may contain secrets, and a known pattern can be evaded.
//! The lists below name what clients may see, so a new field is hidden until it is added there.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    answer::Json,
    auth::Role,
    away::insist,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{JsonText, Name, NoParams, Page, Params, agent_name, parse},
};
use crate::{
    agent::{AgentSpec, KeptFields, Runtime},
    store::agents::AgentRow,
};

/// Fields of a spec that clients see: the limits of their turns.
const FOR_CLIENTS: [&str; 10] = [
    "runtime",
    "scope",
    "max_concurrent_turns",
    "history",
    "idle_ttl",
    "timeouts",
    "retry",
    "guards",
    "limits",
    "expose_errors",
];
/// Fields of a guard that clients see: what they may send, and what a refusal says.
const OF_GUARDS: [&str; 3] = ["kind", "limit", "notice"];

/// An agent in API responses.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentView {
    /// The agent's name.
    name: String,
    /// Counts from 1. A turn keeps the revision that it was accepted with.
    revision: i32,
    /// How the agent's workers run. Clients do not see `command`, `env`, `pod` and guard patterns.
    #[schema(value_type = AgentSpec)]
    spec: Value,
    /// Fields of a newer release, for operators. This replica does not understand them, and leaves the agent's turns
    /// to replicas that do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unread: Vec<String>,
    /// When this revision was put.
    updated_at: DateTime<Utc>,
}

impl AgentView {
    fn of(row: &AgentRow, role: Role) -> Result<AgentView, Problem> {
        let mut spec = serde_json::to_value(&*row.agent.spec).map_err(|why| Problem::internal(&why))?;
        let mut unread = Vec::new();
        // A client sees only fields that this release knows to contain no secret.
        if let Some(more) = row.agent.unread.as_ref().filter(|_| role == Role::Operator) {
            spec = more.whole.clone();
            unread.clone_from(&more.fields);
        }
        if role < Role::Operator {
            keep(&mut spec, &FOR_CLIENTS);
            for guard in spec.get_mut("guards").and_then(Value::as_array_mut).into_iter().flatten() {
                keep(guard, &OF_GUARDS);
            }
        }
        let (name, revision) = (row.agent.name.clone(), row.agent.revision);
        Ok(AgentView { name, revision, spec, unread, updated_at: row.created_at })
    }
}

fn keep(object: &mut Value, shown: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|name, _| shown.contains(&name.as_str()));
    }
}

/// Puts an agent.
///
/// The same spec again makes no new revision; turns under way keep theirs. An unknown field is refused, unless the
/// stored spec has the same field: then a newer release wrote it, and the new spec keeps it.
#[utoipa::path(put, path = "/v1/agents/{name}", tag = "operators", request_body = AgentSpec,
    params(("name" = String, Path)),
    responses(
        (status = 200, description = "The agent", body = AgentView),
        (status = 201, description = "The agent, which is new", body = AgentView),
        (status = 400, body = ProblemDocument),
    ))]
pub async fn put(
    State(gateway): State<Gateway>,
    _: NoParams,
    Name(name): Name,
    JsonText(body): JsonText,
) -> Result<(StatusCode, Json<AgentView>), Problem> {
    let (spec, kept) = understood(&gateway, &name, &body).await?;
    let spec = sound(spec).await?;
    if spec.runtime == Runtime::Kubernetes && !gateway.config.kubernetes {
        return Err(Problem::invalid(
            "runtime",
            "This gateway runs no pods: `kubernetes` is not switched on.",
        ));
    }
    let mut text = serde_json::to_string(&spec).map_err(|why| Problem::internal(&why))?;
    if let Some(kept) = kept {
        let mut whole = serde_json::to_value(&spec).map_err(|why| Problem::internal(&why))?;
        kept.put_back(&mut whole);
        text = whole.to_string();
    }
    let (revision, is_new) = insist(|| gateway.store.put_agent_text(&name, Some(&text))).await?;
    let view = read_as(&gateway, &name, Role::Operator).await?;
    let status = if is_new && revision == 1 { StatusCode::CREATED } else { StatusCode::OK };
    tracing::info!(agent = name, revision, is_new, "an agent was stored");
    Ok((status, Json(view)))
}

/// The spec of a body, and the fields of a newer release that the body repeats unchanged from the stored spec.
async fn understood(
    gateway: &Gateway,
    name: &str,
    body: &[u8],
) -> Result<(AgentSpec, Option<KeptFields>), Problem> {
    let problem = match parse(body) {
        Ok(spec) => return Ok((spec, None)),
        Err(problem) => problem,
    };
    let stored = gateway.store.agent(name).await?.and_then(|row| row.agent.unread);
    let (Some(unread), Ok(mut body)) = (stored, parse::<Value>(body)) else { return Err(problem) };
    let kept = unread.take_unchanged(&mut body);
    let spec = parse(body.to_string().as_bytes())?;
    Ok((spec, Some(kept)))
}

/// Reads an agent.
#[utoipa::path(get, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = AgentView), (status = 404, body = ProblemDocument)))]
pub async fn read(
    State(gateway): State<Gateway>,
    _: NoParams,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<Json<AgentView>, Problem> {
    read_as(&gateway, &name, gateway.doors.keys.role(&headers)).await.map(Json)
}

/// Lists agents by name.
#[utoipa::path(get, path = "/v1/agents", tag = "agents",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = Page<AgentView>)))]
pub async fn list(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Json<Page<AgentView>>, Problem> {
    let limit = params.limit()?;
    let after = params.text("cursor").map(|name| agent_name("cursor", name)).transpose()?;
    params.end()?;
    let role = gateway.doors.keys.role(&headers);
    let rows = gateway.store.agents(after.as_deref(), limit + 1).await?;
    let items = rows.iter().map(|row| AgentView::of(row, role)).collect::<Result<_, _>>()?;
    Ok(Json(Page::of(items, limit, |item: &AgentView| item.name.clone())))
}

/// Deletes an agent: no more turns are accepted for it. Turns under way go on.
#[utoipa::path(delete, path = "/v1/agents/{name}", tag = "operators", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemDocument)))]
pub async fn delete(
    State(gateway): State<Gateway>,
    _: NoParams,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    let (revision, is_new) = gateway.store.put_agent(&name, None).await?;
    if !is_new {
        return Err(Problem::not_found("agent"));
    }
    tracing::info!(agent = name, revision, "an agent was deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// The validated spec. Validation compiles the guards, so it runs on a blocking thread.
async fn sound(spec: AgentSpec) -> Result<AgentSpec, Problem> {
    let checked = tokio::task::spawn_blocking(move || spec.validate().map(|()| spec)).await;
    let checked = checked.map_err(|why| Problem::internal(&why))?;
    checked.map_err(|why| Problem::invalid(why.field, why.why))
}

async fn read_as(gateway: &Gateway, name: &str, role: Role) -> Result<AgentView, Problem> {
    let row = gateway.store.agent(name).await?.ok_or_else(|| Problem::not_found("agent"))?;
    AgentView::of(&row, role)
}
