//! Routes for remote workers; this file has the registration.
//!
//! Owns access: a worker token opens these routes and no others, and only the token of a turn opens its messages. The
//! worker's requests go to the rendezvous ([`crate::rendezvous`]); the engine acts on them.

pub mod beat;
pub mod claims;
pub mod messages;

use std::sync::Arc;

use axum::{Extension, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    answer::Json,
    auth::Admission,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Strict, agent_name},
};
use crate::{
    agent::Scope,
    id::{ConversationId, ReplicaId, WorkerId},
    rendezvous::WorkerSession,
    store::{
        remote_workers::{Registration, RemoteWorker},
        worker_tokens::Grant,
    },
    token,
};

/// The longest name of a host, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// A worker that registers.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The agent whose turns the worker runs.
    agent: String,
    /// The only conversation that the worker serves.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// The worker's id at the replica that it called before.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    worker_id: Option<WorkerId>,
    /// The name of the worker's host, for operators.
    #[serde(default)]
    name: Option<String>,
}

/// The settings of a registered worker.
#[derive(Debug, Serialize, ToSchema)]
pub struct Registered {
    /// `wrk_…`
    #[schema(value_type = String)]
    worker_id: WorkerId,
    /// The id of this replica.
    #[schema(value_type = String)]
    replica_id: ReplicaId,
    /// The URL of this very replica.
    url: String,
    /// The agent's name.
    agent: String,
    /// The agent's newest revision.
    revision: i32,
    /// The only conversation that this worker serves.
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// How the agent's processes and conversations are matched.
    scope: Scope,
    /// How long an idle process is kept.
    idle_ttl_ms: i64,
    /// How long a process may take to become ready.
    startup_ms: i64,
    /// Resident memory of a process and of all processes that it started.
    memory_bytes: u64,
    /// Processes, including the worker's own.
    processes: u32,
    /// Whether a beat may contain `waited_ms`.
    hears_waits: bool,
}

/// Registers a worker at this replica. A worker that comes from another replica sends its `worker_id`.
#[utoipa::path(post, path = "/v1/worker/register", tag = "remote workers", request_body = RegisterRequest,
    responses(
        (status = 200, body = Registered),
        (status = 403, description = "Not this token's agent or conversation, or another token's worker",
            body = ProblemDocument),
        (status = 404, description = "`agent_not_found`: no such agent whose workers call", body = ProblemDocument),
        (status = 409, description = "`worker_gone`: another worker has this id, or the worker has ended",
            body = ProblemDocument),
    ))]
pub async fn register(
    State(gateway): State<Gateway>,
    Extension(admission): Extension<Admission>,
    Strict(request): Strict<RegisterRequest>,
) -> Result<Json<Registered>, Problem> {
    let agent = agent_name("agent", request.agent)?;
    if request.name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX || name.contains('\0')) {
        return Err(Problem::invalid("name", "It takes 200 bytes at most, without NUL."));
    }
    let wanted = Grant { agent, conversation: request.conversation_id, expires_at: None };
    let Grant { conversation, expires_at, .. } = admitted(&admission, &wanted)?;
    let rendezvous = &gateway.rendezvous;
    if !rendezvous.takes_turns() {
        return Err(Problem::elsewhere());
    }
    let found = gateway.store.agent(&wanted.agent).await?.map(|row| row.agent);
    // Only a newer release knows how to run workers of an agent with unknown fields.
    if found.as_ref().is_some_and(|agent| agent.unread.is_some()) {
        return Err(Problem::elsewhere());
    }
    let agent = found.filter(|agent| agent.spec.runtime.is_called());
    let agent = agent.ok_or_else(|| Problem::not_found("agent"))?;
    let worker = RemoteWorker {
        id: request.worker_id.unwrap_or_else(|| WorkerId(gateway.store.clock().mint())),
        agent: agent.name.clone(),
        agent_revision: agent.revision,
        conversation,
        name: request.name,
    };
    match gateway.store.register_worker(&worker, admission.token_hash).await? {
        Registration::Done => {}
        Registration::Gone => return Err(Problem::worker_gone(worker.id)),
        Registration::AnothersToken => return Err(anothers_worker()),
    }
    let worker_id = worker.id;
    rendezvous.admit(worker, admission.token_hash, expires_at).ok_or_else(Problem::elsewhere)?;
    tracing::info!(%worker_id, agent = %agent.name, "a remote worker registered");
    let spec = &agent.spec;
    Ok(Json(Registered {
        worker_id,
        replica_id: gateway.store.replica(),
        url: rendezvous.url().to_owned(),
        revision: agent.revision,
        conversation_id: conversation,
        scope: spec.scope,
        idle_ttl_ms: spec.idle_ttl.millis(),
        startup_ms: spec.timeouts.startup.millis(),
        memory_bytes: spec.limits.memory.0,
        processes: spec.limits.processes,
        hears_waits: true,
        agent: agent.name,
    }))
}

/// The grant for a worker, if its token allows what it wants.
fn admitted(admission: &Admission, wanted: &Grant) -> Result<Grant, Problem> {
    let Some(grant) = &admission.grant else { return Ok(wanted.clone()) };
    let is_other = |bound: ConversationId| wanted.conversation.is_some_and(|it| it != bound);
    if grant.agent != wanted.agent || grant.conversation.is_some_and(is_other) {
        return Err(Problem::forbidden("This token is good for another agent or conversation."));
    }
    Ok(Grant { conversation: grant.conversation.or(wanted.conversation), ..grant.clone() })
}

/// The session of the calling worker, which registered here with the same token.
fn session(
    gateway: &Gateway,
    admission: &Admission,
    worker: WorkerId,
) -> Result<Arc<WorkerSession>, Problem> {
    let session = gateway.rendezvous.session(worker).ok_or_else(|| Problem::not_found("worker"))?;
    if !token::is_same(&session.token_hash, &admission.token_hash) {
        return Err(anothers_worker());
    }
    still_let_in(gateway, &session)?;
    Ok(session)
}

/// Refuses a worker whose token has expired or was revoked. Also called after a wait.
fn still_let_in(gateway: &Gateway, session: &WorkerSession) -> Result<(), Problem> {
    match session.is_let_in(gateway.store.clock().now()) {
        true => Ok(()),
        false => Err(Problem::unauthorized()),
    }
}

fn anothers_worker() -> Problem {
    Problem::forbidden("This worker was registered with another token.")
}
