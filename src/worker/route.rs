//! From a claim to a worker: a turn's agent is read, its input checked, and a worker found.
//!
//! Refuses what an input guard stops, before anything is started.

use tokio::time::Instant;
use tracing::Instrument;

use super::{
    host::Host,
    kubernetes,
    owner::not_started,
    registry::Reach,
    turn::{Job, block, give_back, job_of, prepare, stopped_by},
};
use crate::{
    agent::Runtime,
    host::{HostedTurn as _, Lane, unless_called_off},
    store::{
        claim::{Claim, Phase},
        turns::Agent,
    },
};

/// Reads a claimed turn's agent and finds the turn its worker.
pub(super) async fn find_worker(host: Host, claim: Claim, reach: Reach, lane: Option<Lane>) {
    if let Some(job) = prepare(host.deps(), claim, reach, true).await {
        route(host, job, lane).await;
    }
}

/// Finds a claimed turn its worker, unless it has a `lane` to a shared one already. `claimed_at`: when its
/// clocks began.
pub(super) async fn find_worker_of(
    host: Host,
    claim: Claim,
    agent: Agent,
    reach: Reach,
    lane: Option<Lane>,
    claimed_at: Instant,
) {
    let job = job_of(host.deps(), claim, agent, reach, claimed_at);
    route(host, job, lane).await;
}

async fn route(host: Host, job: Job, lane: Option<Lane>) {
    let (deps, workers) = (host.deps(), host.workers());
    let span = job.span.clone();
    async {
        match (job.claim.phase, lane) {
            (Phase::Running(worker), Some(lane)) if lane.worker() == worker => {
                workers.serve_on(lane, job).await;
            }
            // Its own worker knows it, or has ended.
            (Phase::Running(_), None) if !job.is_shared() => workers.place(job),
            (Phase::Running(_) | Phase::Forsaken, _) => give_back(deps, &job.claim, "drain").await,
            (Phase::Starting, _) => {
                let Some(job) = checked(&host, job).await else { return };
                let is_in_pod = job.agent.spec.runtime == Runtime::Kubernetes;
                match deps.pods().filter(|_| is_in_pod && !job.is_shared()) {
                    Some(pods) => kubernetes::serve(deps, pods, job).await,
                    None => workers.serve(job).await,
                }
            }
        }
    }
    .instrument(span)
    .await;
}

/// The turn, where its input may reach a worker; otherwise the turn has ended, or somebody else has it.
pub(super) async fn checked(host: &Host, mut job: Job) -> Option<Job> {
    let deps = host.deps();
    if job.agent.spec.guards.is_empty() {
        return Some(job);
    }
    let (agent, input) = (job.agent.clone(), job.claim.assignment.input.clone());
    let checking = async { Ok(stopped_by(deps.guards(), &agent, &input).await) };
    match unless_called_off(&mut job, checking).await {
        Err(obstacle) => not_started(deps, &job, obstacle, None).await,
        Ok(Some(notice)) => block(deps, job, notice).await,
        Ok(None) => return Some(job),
    }
    None
}
