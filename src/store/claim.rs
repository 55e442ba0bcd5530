//! Claims: which heads of lines this replica takes, and which of them a worker can have at once.
//!
//! Keeps I9 (heads of lines only, and a unique index) and I10 (`running` is committed before a worker
//! receives the first byte): a turn that a ready worker can have is claimed as `running`, in one commit,
//! and handed over when that is known.

use uuid::Uuid;

use super::{Store, StoreError, assignment::Assignment};
use crate::{
    agent::Runtime,
    id::{ConversationId, TurnId, WorkerId},
};

/// A turn that this replica has taken, with what its host must know at once.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Which turn.
    pub turn: TurnId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// The fencing number, and the attempt's number.
    pub epoch: i32,
    /// The newest event's `seq`.
    pub last_seq: i32,
    /// A warm worker may serve only where this is its own.
    pub generation: i64,
    /// Milliseconds left until the turn's cap.
    pub cap_left_ms: i64,
    /// Milliseconds since the turn came to the head of its line.
    pub waited_ms: i64,
    /// How far it is.
    pub phase: Phase,
    /// What its worker is handed.
    pub assignment: Assignment,
}

/// How far a turn was when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It needs a worker.
    Starting,
    /// It is `running`, for this worker, which has not received it.
    Running(WorkerId),
    /// It is `running`, for a worker that has not received it and never will.
    Forsaken,
}

/// Workers that can have a turn, as their replica knows them.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    /// Each of one conversation alone.
    pub warm: Vec<Warm>,
    /// Shared workers, with how many turns each has room for.
    pub seats: Vec<Seats>,
}

/// Room at a shared worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// Whose turns it serves.
    pub agent: String,
    /// At which revision.
    pub revision: i32,
    /// The worker.
    pub worker: WorkerId,
    /// For how many turns.
    pub count: i32,
}

/// A conversation's own worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// Whose it is.
    pub conversation: ConversationId,
    /// Which of the conversation's workers.
    pub generation: i64,
    /// It, and the agent's revision that it serves, where it can have a turn at once.
    pub idle: Option<(WorkerId, i32)>,
}

/// The data of `started`; nobody starts a turn that a guard stops.
pub(super) fn started_by(worker: impl Into<Option<WorkerId>>) -> String {
    let worker: Option<WorkerId> = worker.into();
    serde_json::json!({ "worker_id": worker }).to_string()
}

impl Store {
    /// Takes up to `limit` heads of lines for this replica, 512 at most: as `running` those that a ready worker can have
    /// at once, which the caller must hand over or give back; as `starting` all others.
    pub async fn claim(
        &self,
        runtimes: &[Runtime],
        ready: &Ready,
        limit: i64,
    ) -> Result<Vec<Claim>, StoreError> {
        let runtimes: Vec<String> = runtimes.iter().map(|r| r.as_str().to_owned()).collect();
        let Columns { warm, seats } = Columns::of(ready);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("claim", |c| {
                sqlx::query!(
                    r#"
                    with me as materialized (
                      -- What looks untouched may have been run before the database went back in time:
                      -- first everybody says what they know.
                      select id from replicas where id = $1 and state = 'ready' and lw_all_reconciled_v1()),
                    -- Each row's company is looked up by itself, and few rows are expected: else a queue that
                    -- is deep has every conversation that ever was read for it.
                    head as materialized (
                      select * from (
                        -- What is decided on comes from the locked row, never from a second look.
                        select i.turn_id, i.conversation_id, i.agent, i.agent_revision, i.epoch, i.cap_at, i.cap_ms
                          from inflight i
                         cross join lateral (
                           select c.holder from conversations c where c.id = i.conversation_id limit 1) v
                         where i.phase = 'queued'
                           and i.runtime = any ($2)
                           and exists (select from me)
                           and (select count(*) from (
                             select from inflight j
                              where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal
                              limit 1) before) = 0
                           -- Whoever served last may have a warm worker: it gets a head start.
                           and (v.holder is null or v.holder = $1 or i.head_at is null
                             or i.head_at < clock_timestamp() - interval '50 ms'
                             or not exists (select from replicas h where h.id = v.holder and h.state = 'ready'))
                         order by i.turn_id
                         limit 512
                           for update of i skip locked) heads
                       limit $3),
                    warm as materialized (
                      select v.id, w.worker, w.revision, w.started
                        from head
                        join conversations v on v.id = head.conversation_id and v.holder = $1
                        join unnest($4::uuid[], $5::bigint[], $6::uuid[], $7::int[], $8::text[])
                          w (id, generation, worker, revision, started)
                          on w.id = v.id and w.generation = v.generation),
                    fit as materialized (
                      select head.turn_id, w.worker, w.started
                        from head join warm w on w.id = head.conversation_id and w.revision = head.agent_revision
                      union all
                      select h.turn_id, s.worker, s.started
                        from (
                          select turn_id, agent, agent_revision,
                                 row_number() over (partition by agent, agent_revision order by turn_id) as n
                            from head) h
                        join (
                          select agent, revision, worker, started,
                                 row_number() over (partition by agent, revision order by place) as n
                            from unnest($9::text[], $10::int[], $11::uuid[], $12::text[], $13::int[])
                              with ordinality u (agent, revision, worker, started, room, place),
                              generate_series(1, u.room)) s
                          on s.agent = h.agent and s.revision = h.agent_revision and s.n = h.n),
                    -- Another worker takes over wherever none is ready.
                    held as (
                      update conversations v
                         set holder = $1, generation = v.generation + 1
                        from head
                       where v.id = head.conversation_id
                         and not exists (select from warm where warm.id = v.id)
                         and not exists (select from fit where fit.turn_id = head.turn_id)
                      returning v.id, v.generation),
                    c as (
                      update inflight i
                         set phase = case when fit.worker is null then 'starting' else 'running' end,
                             epoch = i.epoch + 1, replica = $1, worker = fit.worker,
                             last_seq = i.last_seq + (fit.worker is not null)::int,
                             clock = case when fit.worker is null then 'startup' else 'progress' end,
                             claimed_at = clock_timestamp(),
                             started_at = case when fit.worker is not null then clock_timestamp() end,
                             cap_at = cap.at,
                             deadline = least(cap.at, clock_timestamp() + interval '1 ms'
                               * case when fit.worker is null then i.startup_ms else i.progress_ms end)
                        from head left join fit using (turn_id), lateral (
                          -- The cap runs from the first claim and never grows.
                          select case when head.epoch = 0
                            then clock_timestamp() + head.cap_ms * interval '1 ms' else head.cap_at end) cap (at)
                       where i.turn_id = head.turn_id and i.phase = 'queued'
                      returning i.turn_id, i.conversation_id, i.epoch, i.last_seq, i.cap_at, i.started_at,
                        i.worker, fit.started, coalesce(i.head_at, i.accepted_at) as head_at),
                    s as (
                      update turns set status = 'running', attempt = c.epoch, started_at = c.started_at
                        from c where id = c.turn_id and c.worker is not null),
                    e as (
                      insert into turn_events (turn_id, seq, kind, attempt, data)
                      select turn_id, last_seq, 'started', epoch, started from c where worker is not null)
                    select c.turn_id as "turn!", c.conversation_id as "conversation!", c.epoch as "epoch!",
                           c.last_seq as "last_seq!", coalesce(held.generation, v.generation) as "generation!",
                           (extract(epoch from c.cap_at - clock_timestamp()) * 1000)::bigint as "cap_left_ms!",
                           (extract(epoch from clock_timestamp() - c.head_at) * 1000)::bigint as "waited_ms!",
                           c.worker, t.agent, t.agent_revision, t.ordinal, t.input, t.traceparent
                      from c
                      join conversations v on v.id = c.conversation_id
                      join turns t on t.id = c.turn_id
                      left join held on held.id = c.conversation_id
                    "#,
                    self.replica().0,
                    &runtimes,
                    limit,
                    &warm.conversations,
                    &warm.generations,
                    &warm.workers as &[Option<Uuid>],
                    &warm.revisions as &[Option<i32>],
                    &warm.words as &[Option<String>],
                    &seats.agents,
                    &seats.revisions,
                    &seats.workers,
                    &seats.words,
                    &seats.counts,
                )
                .fetch_all(c)
            })
            .await?;
        let claims: Vec<Claim> = rows
            .into_iter()
            .map(|row| Claim {
                turn: TurnId(row.turn),
                conversation: ConversationId(row.conversation),
                epoch: row.epoch,
                last_seq: row.last_seq,
                generation: row.generation,
                cap_left_ms: row.cap_left_ms,
                waited_ms: row.waited_ms,
                phase: row.worker.map_or(Phase::Starting, |id| Phase::Running(WorkerId(id))),
                assignment: Assignment {
                    agent: row.agent,
                    agent_revision: row.agent_revision,
                    ordinal: row.ordinal,
                    input: row.input,
                    traceparent: row.traceparent,
                },
            })
            .collect();
        let running = claims.iter().filter(|claim| claim.phase != Phase::Starting);
        running.clone().for_each(|claim| self.witness().saw(claim.turn, claim.epoch, claim.last_seq));
        self.wake().events_committed(running.map(|claim| claim.turn));
        Ok(claims)
    }
}

/// A column each, as the statement takes them.
#[derive(Default)]
struct Columns {
    warm: WarmColumns,
    seats: SeatColumns,
}

#[derive(Default)]
struct WarmColumns {
    conversations: Vec<Uuid>,
    generations: Vec<i64>,
    workers: Vec<Option<Uuid>>,
    revisions: Vec<Option<i32>>,
    words: Vec<Option<String>>,
}

#[derive(Default)]
struct SeatColumns {
    agents: Vec<String>,
    revisions: Vec<i32>,
    workers: Vec<Uuid>,
    words: Vec<String>,
    counts: Vec<i32>,
}

impl Columns {
    fn of(ready: &Ready) -> Self {
        let Columns { mut warm, mut seats } = Columns::default();
        for &Warm { conversation, generation, idle } in &ready.warm {
            warm.conversations.push(conversation.0);
            warm.generations.push(generation);
            warm.workers.push(idle.map(|(worker, _)| worker.0));
            warm.revisions.push(idle.map(|(_, revision)| revision));
            warm.words.push(idle.map(|(worker, _)| started_by(worker)));
        }
        for Seats { agent, revision, worker, count } in &ready.seats {
            seats.agents.push(agent.clone());
            seats.revisions.push(*revision);
            seats.workers.push(worker.0);
            seats.words.push(started_by(*worker));
            seats.counts.push(*count);
        }
        Columns { warm, seats }
    }
}
