//! Accepting turns: many in one commit, which also claims those that the accepting replica has capacity for.
//!
//! Keeps I1: a turn, its in-flight row and its event 0 are one commit. `lw_accept_v1` decides what is refused and what
//! is claimed, behind the conversations' locks.

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::Uuid;

pub use crate::store::records::new_turn::{Accepted, ClaimOffer, IfBusy, NewTurn, Verdict};
use crate::{
    agent::{Retry, Runtime},
    event::{Event, Kind, SharedEvent},
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        records::{
            assignment::Assignment,
            claim::{Claim, Phase, started_by},
            page::LogPage,
            word::{Acceptance, InflightPhase, Stored},
        },
    },
    word::Open,
};

impl Store {
    /// Accepts a turn, in one commit with other turns that arrive at the same moment.
    ///
    /// # Errors
    /// See [`Verdict`]. If Postgres is away the turn may have been accepted; a retry is harmless.
    pub async fn accept(&self, new: &NewTurn) -> Verdict {
        match self.accept_batch().ask(new).await {
            Some(verdict) => verdict,
            None => {
                let mut verdicts = self.accept_all(&[(new, None)]).await?;
                verdicts.pop().unwrap_or_else(|| Err(StoreError::unreadable("accept", "no answer")))
            }
        }
    }

    /// Accepts turns in one commit; one verdict each, in the order of `wanted`. No two may have the same idempotency
    /// key or conversation, and they must be sorted by conversation.
    ///
    /// # Errors
    /// Postgres is away, or the whole statement failed: any of the turns may have been accepted.
    pub async fn accept_all(
        &self,
        wanted: &[(&NewTurn, Option<ClaimOffer>)],
    ) -> Result<Vec<Verdict>, StoreError> {
        let mut columns = AcceptColumns::default();
        wanted.iter().for_each(|(new, offer)| columns.push(new, *offer));
        let most = wanted.iter().map(|(new, _)| u64::from(new.queue_max)).min().unwrap_or(0);
        let mut lease = self.lease().await?;
        let count_from = self.wake().queue.count_from(wanted.len(), most);
        let began = Instant::now();
        let rows = lease
            .run("accept", |c| {
                sqlx::query_as!(
                    AcceptRow,
                    r#"
                    select o_place as "place!", o_turn as "turn!", o_outcome as "outcome!: Stored<Open<Acceptance>>", o_detail as detail,
                           o_ordinal as ordinal, o_at as "at!", o_phase as "phase: Stored<Open<InflightPhase>>", o_epoch as epoch,
                           o_last_seq as last_seq, o_generation as generation, o_cap_left_ms as cap_left_ms,
                           o_counted as counted
                      from lastword.lw_accept_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                        $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)
                    "#,
                    self.replica().0,
                    &columns.turns,
                    &columns.conversations,
                    &columns.are_new,
                    &columns.agents,
                    &columns.revisions,
                    &columns.runtimes as &[Stored<Open<Runtime>>],
                    &columns.inputs,
                    &columns.metadata as &[Option<String>],
                    &columns.traceparents,
                    &columns.retries_of as &[Option<Uuid>],
                    &columns.keys as &[Option<String>],
                    &columns.hashes as &[Option<String>],
                    &columns.busy,
                    &columns.queue_ms,
                    &columns.startup_ms,
                    &columns.progress_ms,
                    &columns.cap_ms,
                    &columns.are_retry_safe,
                    &columns.depths_max,
                    &columns.queues_max,
                    count_from.map(|turn| turn.0),
                    &columns.are_offered,
                    &columns.generations as &[Option<i64>],
                    &columns.workers as &[Option<Uuid>],
                    &columns.events,
                    &columns.starts as &[Option<String>],
                )
                .fetch_all(c)
            })
            .await?;
        let mut verdicts: Vec<Verdict> =
            wanted.iter().map(|_| Err(StoreError::unreadable("accept", "no answer"))).collect();
        let counted = rows.iter().find_map(|row| row.counted);
        for row in rows {
            let place = usize::try_from(row.place - 1).unwrap_or(usize::MAX);
            if let (Some((new, offer)), Some(verdict)) = (wanted.get(place), verdicts.get_mut(place)) {
                *verdict = row.verdict(new, *offer);
            }
        }
        let news = wanted.iter().zip(&verdicts);
        let born = news.filter_map(|((new, _), verdict)| Some((*new, verdict.as_ref().ok()?)));
        for (new, accepted) in born.filter(|(_, accepted)| !accepted.is_repeat) {
            let epoch = accepted.claim.as_ref().map_or(0, |claim| claim.epoch);
            self.seen_commits().saw(new.id, epoch, i32::from(accepted.is_running()));
            self.wake().turns.events_here(new.id, began, -1, || Some(birth(accepted, new)));
        }
        self.ring_for(wanted, &verdicts, counted);
        let grown = wanted.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_ok());
        self.wake().conversations.grew(&grown.map(|((new, _), _)| new.conversation).collect::<Vec<_>>());
        Ok(verdicts)
    }

    /// Notes newly queued turns and rings for them.
    fn ring_for(
        &self,
        wanted: &[(&NewTurn, Option<ClaimOffer>)],
        verdicts: &[Verdict],
        counted: Option<i32>,
    ) {
        let accepted =
            wanted.iter().zip(verdicts).filter_map(|((new, _), it)| Some((new.id, it.as_ref().ok()?)));
        let held_by_nobody = accepted.filter(|(_, accepted)| accepted.claim.is_none());
        let (new, older): (Vec<_>, Vec<_>) = held_by_nobody.partition(|(id, accepted)| accepted.id == *id);
        self.wake().queue.queued(counted.map(|count| u64::from(count.unsigned_abs())), new.len());
        if let Some(first) = new.into_iter().map(|(id, _)| id).min() {
            self.wake().queue.grew(first);
        }
        // Accepted by an earlier request with the same key, which may have died before its ring.
        if !older.is_empty() {
            self.wake().queue.moved();
        }
    }
}

struct AcceptRow {
    place: i64,
    turn: Uuid,
    outcome: Stored<Open<Acceptance>>,
    detail: Option<String>,
    ordinal: Option<i64>,
    at: DateTime<Utc>,
    phase: Option<Stored<Open<InflightPhase>>>,
    epoch: Option<i32>,
    last_seq: Option<i32>,
    generation: Option<i64>,
    cap_left_ms: Option<i64>,
    counted: Option<i32>,
}

impl AcceptRow {
    fn verdict(self, new: &NewTurn, offer: Option<ClaimOffer>) -> Verdict {
        let outcome = match self.outcome.0 {
            Open::Foreign(code) if code.starts_with("LW") => {
                let code = Open::of(&code);
                return Err(StoreError::Refused { op: "accept", code, detail: self.detail });
            }
            outcome => outcome.known().map_err(|unknown| StoreError::unreadable("accept", unknown))?,
        };
        let id = TurnId(self.turn);
        let phase = self.phase.map_or(InflightPhase::Queued.into(), |phase| phase.0);
        let ordinal = self.ordinal.unwrap_or_default();
        let is_repeat = outcome != Acceptance::Accepted;
        let claim = (phase != InflightPhase::Queued).then(|| Claim {
            turn: id,
            conversation: new.conversation,
            epoch: self.epoch.unwrap_or_default(),
            last_seq: self.last_seq.unwrap_or_default(),
            generation: self.generation.unwrap_or_default(),
            cap_left_ms: self.cap_left_ms.unwrap_or_default(),
            waited_ms: 0,
            phase: match offer.and_then(|offer| offer.worker) {
                _ if phase == InflightPhase::Starting => Phase::Starting,
                Some(worker) if !is_repeat => Phase::Running(worker),
                _ => Phase::Forsaken,
            },
            assignment: Assignment {
                agent: new.agent.name.clone(),
                agent_revision: new.agent.revision,
                ordinal,
                input: new.input.clone(),
                traceparent: new.traceparent.clone(),
            },
        });
        Ok(Accepted { id, is_repeat, ordinal, at: self.at, claim })
    }
}

/// The statement's parameters, one column each.
#[derive(Default)]
struct AcceptColumns {
    turns: Vec<Uuid>,
    conversations: Vec<Uuid>,
    are_new: Vec<bool>,
    agents: Vec<String>,
    revisions: Vec<i32>,
    runtimes: Vec<Stored<Open<Runtime>>>,
    inputs: Vec<String>,
    metadata: Vec<Option<String>>,
    traceparents: Vec<String>,
    retries_of: Vec<Option<Uuid>>,
    keys: Vec<Option<String>>,
    hashes: Vec<Option<String>>,
    busy: Vec<String>,
    queue_ms: Vec<i64>,
    startup_ms: Vec<i64>,
    progress_ms: Vec<i64>,
    cap_ms: Vec<i64>,
    are_retry_safe: Vec<bool>,
    depths_max: Vec<i32>,
    queues_max: Vec<i32>,
    are_offered: Vec<bool>,
    generations: Vec<Option<i64>>,
    workers: Vec<Option<Uuid>>,
    events: Vec<String>,
    starts: Vec<Option<String>>,
}

impl AcceptColumns {
    fn push(&mut self, new: &NewTurn, offer: Option<ClaimOffer>) {
        let spec = &new.agent.spec;
        let (key, hash) = new.idempotency.clone().unzip();
        let worker = offer.and_then(|offer| offer.worker);
        self.turns.push(new.id.0);
        self.conversations.push(new.conversation.0);
        self.are_new.push(new.is_new_conversation);
        self.agents.push(new.agent.name.clone());
        self.revisions.push(new.agent.revision);
        self.runtimes.push(Stored(new.agent.runtime()));
        self.inputs.push(new.input.clone());
        self.metadata.push(new.metadata.clone());
        self.traceparents.push(new.traceparent.clone());
        self.retries_of.push(new.retry_of.map(|turn| turn.0));
        self.keys.push(key);
        self.hashes.push(hash);
        self.busy.push(new.if_busy.as_str().to_owned());
        self.queue_ms.push(spec.timeouts.queue.millis());
        self.startup_ms.push(spec.timeouts.startup.millis());
        self.progress_ms.push(spec.timeouts.progress.millis());
        self.cap_ms.push(spec.timeouts.cap.millis());
        self.are_retry_safe.push(spec.retry == Retry::Safe);
        self.depths_max.push(i32::try_from(new.depth_max).unwrap_or(i32::MAX));
        self.queues_max.push(i32::try_from(new.queue_max).unwrap_or(i32::MAX));
        self.are_offered.push(offer.is_some());
        self.generations.push(offer.and_then(|offer| offer.generation));
        self.workers.push(worker.map(|worker| worker.0));
        self.events.push(accepted_but_for_the_ordinal(new));
        self.starts.push(worker.map(started_by));
    }
}

/// The data of event 0 up to the ordinal, which is known only behind the lock. An agent's name needs no JSON escapes.
fn accepted_but_for_the_ordinal(new: &NewTurn) -> String {
    format!(r#"{{"conversation_id":"{}","agent":"{}","ordinal":"#, new.conversation, new.agent.name)
}

/// The log of a new turn: `accepted`, and `started` if a worker has the turn.
fn birth(accepted: &Accepted, new: &NewTurn) -> LogPage {
    let event = |seq, kind, attempt, data| {
        Event { turn_id: new.id, seq, kind, attempt, data, at: accepted.at }.into()
    };
    let first = format!("{}{}}}", accepted_but_for_the_ordinal(new), accepted.ordinal);
    let mut events: Vec<SharedEvent> = vec![event(0, Kind::Accepted, 0, first)];
    if let Some(&Claim { epoch, phase: Phase::Running(worker), .. }) = accepted.claim.as_ref() {
        events.push(event(1, Kind::Started, epoch, started_by(worker)));
    }
    LogPage { anchor: None, events, is_whole: true }
}
