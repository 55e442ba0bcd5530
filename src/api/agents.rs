//! Agents: put, read, list, delete.
//!
//! A client sees which agents there are, and what it may expect of them. What they run, with which environment,
//! and what they look for in an input only operators see: secrets stand there, and who knows a pattern gets
//! around it. What a client sees is named here, so that a new field is hidden until somebody has thought of it.

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

/// What clients see of a spec: what bounds their turns.
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
/// What clients see of a guard: what they may send, and what they are told.
const OF_GUARDS: [&str; 3] = ["kind", "limit", "notice"];

/// An agent as the API shows it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentView {
    /// Its name.
    name: String,
    /// Counts from 1; a turn keeps the one it was accepted with.
    revision: i32,
    /// How its workers run. Clients are not shown `command`, `env`, `pod` and the patterns of guards.
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
        // A client is shown what this release knows to be no secret.
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

/// Puts an agent. The same spec again makes no new revision; turns under way keep theirs. An unknown field is refused,
/// unless the stored spec has the same: a newer release wrote that field, and the new spec keeps it.
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
    tracing::info!(agent = name, revision, is_new, "an agent was put");
    Ok((status, Json(view)))
}

/// The spec of a body, and what that body keeps of the stored one which this release does not understand.
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
    read_as(&gateway, &name, gateway.keys().role(&headers)).await.map(Json)
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
    let role = gateway.keys().role(&headers);
    let rows = gateway.store.agents(after.as_deref(), limit + 1).await?;
    let items = rows.iter().map(|row| AgentView::of(row, role)).collect::<Result<_, _>>()?;
    Ok(Json(Page::of(items, limit, |item: &AgentView| item.name.clone())))
}

/// Deletes an agent: no turn is accepted for it after. Turns under way go on.
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

/// A spec that makes sense. Its guards are compiled for that, which is not for a task among others.
async fn sound(spec: AgentSpec) -> Result<AgentSpec, Problem> {
    let checked = tokio::task::spawn_blocking(move || spec.validate().map(|()| spec)).await;
    let checked = checked.map_err(|why| Problem::internal(&why))?;
    checked.map_err(|why| Problem::invalid(why.field, why.why))
}

async fn read_as(gateway: &Gateway, name: &str, role: Role) -> Result<AgentView, Problem> {
    let row = gateway.store.agent(name).await?.ok_or_else(|| Problem::not_found("agent"))?;
    AgentView::of(&row, role)
}
