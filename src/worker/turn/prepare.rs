//! Loads the agent of a claimed turn, and ends turns that no worker receives.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{
    job::Job,
    terminal::{Account, speak},
    timers::Clocks,
};
use crate::{
    event::{Kind, NewEvent},
    failure::Code,
    host::Halt,
    store::{
        StoreError,
        assignment::Assignment,
        claim::Claim,
        events::{Append, TurnClock},
        group_commit::Written,
        turns::Agent,
        warn_of,
    },
    telemetry,
    worker::{deps::Deps, registry::Reach},
};

/// How long loading a turn's agent is retried while Postgres is away.
const LOAD_MAX: Duration = Duration::from_secs(60);

/// Loads a claimed turn's agent; `None` if the turn cannot be run here. `is_untouched`: no worker has received the
/// turn, so it may be given back.
pub(in crate::worker) async fn prepare(
    deps: &Deps,
    claim: Claim,
    mut reach: Reach,
    is_untouched: bool,
) -> Option<Job> {
    let claimed_at = Instant::now();
    let loaded = tokio::select! {
        loaded = load(deps, &claim) => loaded,
        halt = reach.halted() => {
            if halt == Halt::Interrupted && is_untouched {
                give_back(deps, &claim, "drain").await;
            }
            return None;
        }
    };
    let why = match loaded {
        Ok(Some(agent)) if agent.unread.is_some() && is_untouched => {
            decline(deps, &claim).await;
            return None;
        }
        Ok(Some(agent)) => return Some(job_of(deps, claim, agent, reach, claimed_at)),
        Ok(None) => "its agent's revision does not exist".to_owned(),
        Err(why) => why.to_string(),
    };
    fail(deps, &claim, &why).await;
    None
}

/// A claimed turn with its agent. `claimed_at`: start of its clocks.
pub(in crate::worker) fn job_of(
    deps: &Deps,
    claim: Claim,
    agent: Agent,
    reach: Reach,
    claimed_at: Instant,
) -> Job {
    let cap_left = Duration::from_millis(u64::try_from(claim.cap_left_ms).unwrap_or(0));
    let clocks = Clocks::claimed(claimed_at, agent.spec.timeouts.startup.0, cap_left);
    let span = tracing::info_span!(
        "turn", turn_id = %claim.turn, conversation_id = %claim.conversation, agent = %agent.name,
        epoch = claim.epoch, replica_id = %deps.store.replica(), worker_id = tracing::field::Empty,
    );
    telemetry::adopt(&span, &claim.assignment.traceparent);
    Job { claim, agent, clocks, span, reach }
}

/// Gives a turn that no worker has received back to the queue. `reason` is the label of the metric.
pub(in crate::worker) async fn give_back(deps: &Deps, claim: &Claim, reason: &'static str) {
    deps.running.release(claim);
    match deps.store.release(claim.turn, claim.epoch, true).await {
        Ok(true) => telemetry::metrics::requeued(reason),
        // The next `settle` pass gives the turn back.
        Ok(false) => tracing::warn!(turn_id = %claim.turn, "the turn could not be given back yet"),
        Err(why) => warn_of!(why, turn_id = %claim.turn, "the turn could not be given back yet"),
    }
}

/// Leaves a turn to replicas of a newer release, whose agent this release cannot read. The store claims no more
/// turns of that agent here.
async fn decline(deps: &Deps, claim: &Claim) {
    deps.running.release(claim);
    match deps.store.decline(claim.turn, claim.epoch).await {
        Ok(true) => telemetry::metrics::requeued("newer_release"),
        // The next `settle` pass gives the turn back.
        Ok(false) => {
            tracing::warn!(turn_id = %claim.turn, "the turn could not be left to a newer release yet")
        }
        Err(why) => warn_of!(why, turn_id = %claim.turn, "the turn could not be left to a newer release yet"),
    }
}

async fn load(deps: &Deps, claim: &Claim) -> Result<Option<Agent>, StoreError> {
    let give_up = Instant::now() + LOAD_MAX;
    let Assignment { agent, agent_revision, .. } = &claim.assignment;
    loop {
        match deps.store.agent_at(agent, *agent_revision).await {
            Err(why) if why.is_away() && Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
            }
            other => return other,
        }
    }
}

async fn fail(deps: &Deps, claim: &Claim, why: &str) {
    tracing::error!(turn_id = %claim.turn, why, "a claimed turn cannot be run");
    let word = Account::unstarted(claim, None).failure(Code::Internal, Code::Internal.message(), None);
    speak(deps, claim, claim.last_seq, word).await;
}

/// Ends a turn whose input a guard stops: writes the notice, then the last word. `start` comes first because the
/// log takes events of running turns only.
pub(in crate::worker) async fn block(deps: &Deps, job: Job, notice: String) {
    let claim = &job.claim;
    let base = match deps.store.start(claim, None).await {
        Ok(Some(base)) => base,
        Ok(None) => return telemetry::metrics::leases_lost(),
        // The turn's startup clock closes the turn.
        Err(why) => return warn_of!(why, "the notice of a blocked turn could not be written"),
    };
    let append = Append {
        turn: claim.turn,
        epoch: claim.epoch,
        base,
        events: vec![NewEvent::new(Kind::Content, &json!({ "text": notice }))],
        clock: TurnClock::Progress,
        budget_ms: job.agent.spec.timeouts.progress.millis(),
    };
    if let Written::Done(base) = deps.writer.append(append).await {
        let account = Account::unstarted(claim, Some(&job));
        speak(deps, claim, base, account.failure(Code::GuardBlocked, &notice, None)).await;
    }
}
