//! The first steps of a claimed turn: read its agent, check its input, find it a worker.
//!
//! Refuses what an input guard stops, before anything is started.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    clocks::Clocks,
    ending::{Account, speak},
    guards,
    host::Host,
    job::{Halt, Job, Reach},
    kubernetes,
    line::Extension,
    shared, start,
};
use crate::{
    agent::{Runtime, Scope},
    event::{Kind, NewEvent},
    failure::Code,
    store::{
        StoreError,
        assignment::Assignment,
        claim::{Claim, Phase},
        events::{Append, TurnClock},
        group_commit::Written,
        turns::Agent,
        warn_of,
    },
    telemetry,
};

/// How long a claimed turn's agent is looked for while Postgres is away.
const LOAD_MAX: Duration = Duration::from_secs(60);

/// Reads a claimed turn's agent and places the turn.
pub(super) async fn begin(host: Host, claim: Claim, reach: Reach, line: Option<Extension>) {
    if let Some(job) = job(&host, claim, reach, true).await {
        place_job(host, job, line).await;
    }
}

/// Reads a claimed turn's agent; `None` where there is nothing to be run. `is_untouched`: no worker has
/// received the turn.
pub(super) async fn job(host: &Host, claim: Claim, mut reach: Reach, is_untouched: bool) -> Option<Job> {
    let claimed_at = Instant::now();
    let loaded = tokio::select! {
        loaded = load(host, &claim) => loaded,
        halt = reach.halted() => {
            if halt == Halt::Interrupted && is_untouched {
                give_back(host, &claim, "drain").await;
            }
            return None;
        }
    };
    let why = match loaded {
        Ok(Some(agent)) if agent.unread.is_some() && is_untouched => {
            decline(host, &claim).await;
            return None;
        }
        Ok(Some(agent)) => return Some(job_of(host, claim, agent, reach, claimed_at)),
        Ok(None) => "its agent's revision does not exist".to_owned(),
        Err(why) => why.to_string(),
    };
    fail(host, &claim, &why).await;
    None
}

fn job_of(host: &Host, claim: Claim, agent: Agent, reach: Reach, claimed_at: Instant) -> Job {
    let cap_left = Duration::from_millis(u64::try_from(claim.cap_left_ms).unwrap_or(0));
    let clocks = Clocks::claimed(claimed_at, agent.spec.timeouts.startup.0, cap_left);
    let span = tracing::info_span!(
        "turn", turn_id = %claim.turn, conversation_id = %claim.conversation, agent = %agent.name,
        epoch = claim.epoch, replica_id = %host.store().replica(), worker_id = tracing::field::Empty,
    );
    telemetry::adopt(&span, &claim.assignment.traceparent);
    Job { claim, agent, clocks, span, reach }
}

/// Finds a claimed turn its worker, unless it has a `line` to a shared one already. `claimed_at`: when its
/// clocks began.
pub(super) async fn place(
    host: Host,
    claim: Claim,
    agent: Agent,
    reach: Reach,
    line: Option<Extension>,
    claimed_at: Instant,
) {
    let job = job_of(&host, claim, agent, reach, claimed_at);
    place_job(host, job, line).await;
}

async fn place_job(host: Host, mut job: Job, line: Option<Extension>) {
    let is_shared = job.agent.spec.scope == Scope::Shared;
    let is_in_pod = job.agent.spec.runtime == Runtime::Kubernetes;
    let span = job.span.clone();
    async {
        match (job.claim.phase, line) {
            (Phase::Running(worker), Some(line)) if line.worker() == worker => {
                shared::run_on(&host, line, job).await;
            }
            // Its own worker knows it, or has ended.
            (Phase::Running(_), None) if !is_shared => host.place(job),
            (Phase::Running(_) | Phase::Forsaken, _) => give_back(&host, &job.claim, "drain").await,
            (Phase::Starting, _) => match guards::stopped_by(&host, &mut job).await {
                Err(obstacle) => start::tell(&host, &job, obstacle, None).await,
                Ok(Some(notice)) => block(&host, job, notice).await,
                Ok(None) if is_shared => shared::serve(&host, job).await,
                Ok(None) if let Some(pods) = host.pods().filter(|_| is_in_pod) => {
                    kubernetes::serve(&host, pods, job).await;
                }
                Ok(None) => host.place(job),
            },
        }
    }
    .instrument(span)
    .await;
}

/// Gives a turn back to the queue that no worker has received, for this reason.
pub(super) async fn give_back(host: &Host, claim: &Claim, reason: &'static str) {
    host.run_list().forgo(claim);
    match host.store().release(claim.turn, claim.epoch, true).await {
        Ok(true) => telemetry::metrics::requeued(reason),
        // The next comparison of what is held with what runs gives it back.
        Ok(false) => tracing::warn!(turn_id = %claim.turn, "not given back yet"),
        Err(why) => warn_of!(why, turn_id = %claim.turn, "not given back yet"),
    }
}

/// Leaves a turn to the replicas of a newer release, which wrote its agent. The store claims no more of them here.
async fn decline(host: &Host, claim: &Claim) {
    host.run_list().forgo(claim);
    match host.store().decline(claim.turn, claim.epoch).await {
        Ok(true) => telemetry::metrics::requeued("newer_release"),
        // The next comparison of what is held with what runs gives it back.
        Ok(false) => tracing::warn!(turn_id = %claim.turn, "not declined yet"),
        Err(why) => warn_of!(why, turn_id = %claim.turn, "not declined yet"),
    }
}

async fn load(host: &Host, claim: &Claim) -> Result<Option<Agent>, StoreError> {
    let give_up = Instant::now() + LOAD_MAX;
    let Assignment { agent, agent_revision, .. } = &claim.assignment;
    loop {
        match host.store().agent_at(agent, *agent_revision).await {
            Err(why) if why.is_away() && Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
            }
            other => return other,
        }
    }
}

async fn fail(host: &Host, claim: &Claim, why: &str) {
    tracing::error!(turn_id = %claim.turn, why, "a claimed turn cannot be run");
    let account = Account::unstarted(claim, None);
    speak(host, claim, claim.last_seq, account.failure(Code::Internal, Code::Internal.message(), None)).await;
}

/// The notice, then the last word. The log takes events of running turns only.
pub(super) async fn block(host: &Host, job: Job, notice: String) {
    let claim = &job.claim;
    let base = match host.store().start(claim, None).await {
        Ok(Some(base)) => base,
        Ok(None) => return telemetry::metrics::leases_lost(),
        // Its startup clock closes it.
        Err(why) => return warn_of!(why, "a blocked turn could not be told"),
    };
    let append = Append {
        turn: claim.turn,
        epoch: claim.epoch,
        base,
        events: vec![NewEvent::new(Kind::Content, &json!({ "text": notice }))],
        clock: TurnClock::Progress,
        budget_ms: job.agent.spec.timeouts.progress.millis(),
    };
    if let Written::Done(base) = host.writer().append(append).await {
        let account = Account::unstarted(claim, Some(&job));
        speak(host, claim, base, account.failure(Code::GuardBlocked, &notice, None)).await;
    }
}
