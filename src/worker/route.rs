//! From a claim to a worker: reads the turn's agent, checks the input, finds a worker.
//!
//! Refuses input that a guard stops, before any process is started.

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

/// Reads a claimed turn's agent, then finds a worker.
pub(super) async fn find_worker(host: Host, claim: Claim, reach: Reach, lane: Option<Lane>) {
    if let Some(job) = prepare(host.deps(), claim, reach, true).await {
        route(host, job, lane).await;
    }
}

/// Finds a worker for a claimed turn, unless the turn already has a `lane`. `claimed_at`: start of the turn's
/// clocks.
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
            // The conversation's own worker takes the turn, or has already ended.
            (Phase::Running(_), None) if !job.is_shared() => workers.place(job),
            (Phase::Running(_) | Phase::Forsaken, _) => give_back(deps, &job.claim, "drain").await,
            (Phase::Starting, _) => {
                let Some(job) = checked(&host, job).await else { return };
                let is_in_pod = job.agent.spec.runtime == Runtime::Kubernetes;
                match deps.pods.as_ref().filter(|_| is_in_pod && !job.is_shared()) {
                    Some(pods) => kubernetes::serve(deps, pods, job).await,
                    None => workers.serve(job).await,
                }
            }
        }
    }
    .instrument(span)
    .await;
}

/// Checks the input. `None`: the turn has ended, or is no longer held here.
pub(super) async fn checked(host: &Host, mut job: Job) -> Option<Job> {
    let deps = host.deps();
    if job.agent.spec.guards.is_empty() {
        return Some(job);
    }
    let (agent, input) = (job.agent.clone(), job.claim.assignment.input.clone());
    let checking = async { Ok(stopped_by(&deps.guards, &agent, &input).await) };
    match unless_called_off(&mut job, checking).await {
        Err(obstacle) => not_started(deps, &job, obstacle, None).await,
        Ok(Some(notice)) => block(deps, job, notice).await,
        Ok(None) => return Some(job),
    }
    None
}
