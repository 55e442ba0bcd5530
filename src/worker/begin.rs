//! The first steps of a claimed turn: read what it is, check its input, find it a worker.
//!
//! Refuses what an input guard stops, before anything is started.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    clocks::Clocks,
    ending::{Account, speak},
    host::Host,
    job::{Halt, Job, Reach},
    shared,
};
use crate::{
    agent::{AgentSpec, Scope},
    event::{Kind, NewEvent},
    failure::Code,
    store::{
        StoreError,
        assignment::Assignment,
        events::{Append, TurnClock},
        inflight::Claim,
        turns::Agent,
        writer::Written,
    },
    telemetry,
};

/// How long a claimed turn's own row is looked for while Postgres is away.
const LOAD_MAX: Duration = Duration::from_secs(60);

/// Reads what a claimed turn is and places it.
pub(super) async fn begin(host: Host, claim: Claim, mut reach: Reach) {
    let now = Instant::now();
    let loaded = tokio::select! {
        loaded = load(&host, &claim) => loaded,
        halt = reach.halted() => {
            if halt == Halt::Interrupted {
                give_back(&host, &claim).await;
            }
            return;
        }
    };
    let (assignment, agent) = match loaded {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return fail(&host, &claim, "the turn or its agent's revision does not exist").await,
        Err(why) => return fail(&host, &claim, &why.to_string()).await,
    };
    let cap_left = Duration::from_millis(u64::try_from(claim.cap_left_ms).unwrap_or(0));
    let clocks = Clocks::claimed(now, agent.spec.timeouts.startup.0, cap_left);
    let span = tracing::info_span!(
        "turn", turn_id = %claim.turn, conversation_id = %claim.conversation, agent = %agent.name,
        epoch = claim.epoch, replica_id = %host.store().replica(), worker_id = tracing::field::Empty,
    );
    telemetry::adopt(&span, &assignment.traceparent);
    let job = Job { claim, assignment, agent, clocks, span: span.clone(), reach };
    async {
        match stopped_by_guard(&job.agent.spec, &job.assignment.input) {
            Some(notice) => block(&host, job, notice).await,
            None if job.agent.spec.scope == Scope::Shared => shared::serve(&host, job).await,
            None => host.place(job),
        }
    }
    .instrument(span)
    .await;
}

/// Gives a turn back to the queue that no worker has received.
pub(super) async fn give_back(host: &Host, claim: &Claim) {
    match host.store().release(claim.turn, claim.epoch).await {
        Ok(true) => telemetry::metrics::requeued("drain"),
        // The close pass of another replica finds it when this one has left.
        Ok(false) | Err(_) => tracing::warn!(turn_id = %claim.turn, "not given back; left to be closed"),
    }
}

async fn load(host: &Host, claim: &Claim) -> Result<Option<(Assignment, Agent)>, StoreError> {
    let give_up = Instant::now() + LOAD_MAX;
    loop {
        let read = async {
            let Some(assignment) = host.store().assignment(claim.turn).await? else { return Ok(None) };
            let agent = host.store().agent_at(&assignment.agent, assignment.agent_revision).await?;
            Ok(agent.map(|agent| (assignment, agent)))
        };
        match read.await {
            Err(StoreError::Away { .. }) if Instant::now() < give_up => {
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

fn stopped_by_guard(spec: &AgentSpec, input: &str) -> Option<String> {
    let input: serde_json::Value = serde_json::from_str(input).ok()?;
    let text = input.get("text")?.as_str()?;
    spec.guards.iter().find_map(|guard| guard.stops(text)).map(str::to_owned)
}

/// The notice, then the last word. The log takes events of running turns only.
async fn block(host: &Host, job: Job, notice: String) {
    let claim = &job.claim;
    let base = match host.store().start(claim, None).await {
        Ok(Some(base)) => base,
        Ok(None) => return telemetry::metrics::leases_lost(),
        // Its startup clock closes it.
        Err(why) => return tracing::warn!(%why, "a blocked turn could not be told"),
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
