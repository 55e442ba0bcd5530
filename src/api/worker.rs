//! Routes for remote workers: they register, and are told who they are from then on.
//!
//! Owns who may call: a worker token opens these routes and no others, and no other token opens them. What
//! a worker brings goes to the rendezvous ([`crate::rendezvous`]); what becomes of it is the engine's.

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

/// What a host may call itself, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// Who calls.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Whose turns it runs.
    agent: String,
    /// The only conversation that it serves.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// Who it was at the replica that it called before.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    worker_id: Option<WorkerId>,
    /// What its host calls itself, for operators.
    #[serde(default)]
    name: Option<String>,
}

/// What a worker must know.
#[derive(Debug, Serialize, ToSchema)]
pub struct Registered {
    /// `wrk_…`
    #[schema(value_type = String)]
    worker_id: WorkerId,
    /// Which replica this is.
    #[schema(value_type = String)]
    replica_id: ReplicaId,
    /// Where this very replica is reached.
    url: String,
    /// The agent's name.
    agent: String,
    /// Its newest revision.
    revision: i32,
    /// The only conversation that this worker serves.
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// How the agent's processes and conversations belong together.
    scope: Scope,
    /// How long a process may have nothing to do.
    idle_ttl_ms: i64,
    /// How long a process may take until it is ready.
    startup_ms: i64,
    /// Resident memory of a process and all it started.
    memory_bytes: u64,
    /// Processes, its own included.
    processes: u32,
    /// Whether a beat may say `waited_ms`.
    hears_waits: bool,
}

/// Lets a worker call this replica. One that comes from another brings its `worker_id` along.
#[utoipa::path(post, path = "/v1/worker/register", tag = "remote workers", request_body = RegisterRequest,
    responses(
        (status = 200, body = Registered),
        (status = 403, description = "Not this token's agent or conversation, or another token's worker",
            body = ProblemDocument),
        (status = 404, description = "`agent_not_found`: none whose workers call", body = ProblemDocument),
        (status = 409, description = "`worker_gone`: of this id there is another one, or none any more",
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
    // Whether an agent of a newer release is called, and how, only such a release knows.
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
    tracing::info!(%worker_id, agent = %agent.name, "a remote worker calls");
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

/// What a worker is let in for, where its token lets it in.
fn admitted(admission: &Admission, wanted: &Grant) -> Result<Grant, Problem> {
    let Some(grant) = &admission.grant else { return Ok(wanted.clone()) };
    let is_other = |bound: ConversationId| wanted.conversation.is_some_and(|it| it != bound);
    if grant.agent != wanted.agent || grant.conversation.is_some_and(is_other) {
        return Err(Problem::forbidden("This token is good for another agent or conversation."));
    }
    Ok(Grant { conversation: grant.conversation.or(wanted.conversation), ..grant.clone() })
}

/// The worker that calls, which has registered at this replica with the very token that it shows.
fn session(
    gateway: &Gateway,
    admission: &Admission,
    worker: WorkerId,
) -> Result<Arc<WorkerSession>, Problem> {
    let session = gateway.rendezvous.session(worker).ok_or_else(|| Problem::not_found("worker"))?;
    if !token::is_same(session.token_hash(), &admission.token_hash) {
        return Err(anothers_worker());
    }
    still_let_in(gateway, &session)?;
    Ok(session)
}

/// Refuses a worker whose token has ended, also while it waits.
fn still_let_in(gateway: &Gateway, session: &WorkerSession) -> Result<(), Problem> {
    match session.is_let_in(gateway.store.clock().now()) {
        true => Ok(()),
        false => Err(Problem::unauthorized()),
    }
}

fn anothers_worker() -> Problem {
    Problem::forbidden("This worker was registered with another token.")
}
