//! Claims: takes turns at the head of their conversations' lines for this replica.
//!
//! Keeps I9 (only heads of lines, and a unique index) and I10 (`running` is committed before a worker receives the
//! first byte): a turn that fits a ready worker is claimed as `running` in the same commit, and handed over once the
//! commit is known.

use std::{collections::BTreeMap, iter::repeat_n};

use uuid::Uuid;

pub use crate::store::records::claim::{Claim, Phase};
use crate::{
    agent::{READS, Runtime},
    id::{ConversationId, TurnId, WorkerId},
    principal::Principal,
    store::{
        error::StoreError,
        handle::Store,
        records::{assignment::Assignment, claim::started_by, word::Stored},
    },
};

/// The limit in the statement.
const HEADS_MAX: usize = 512;
/// Stands for the revision of a worker that is busy.
const BUSY: i32 = -1;

/// This replica's workers, as a claim matches them with turns.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    /// Conversations' own workers.
    pub warm: Vec<Warm>,
    /// Shared workers, each with its free capacity.
    pub seats: Vec<Seats>,
    /// Principals whose turns are skipped, since they already use their share of the slots.
    pub barred: Vec<Principal>,
}

/// Free capacity of a shared worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// The agent.
    pub agent: String,
    /// The agent's revision.
    pub revision: i32,
    /// The worker.
    pub worker: WorkerId,
    /// How many more turns the worker can take.
    pub count: i32,
}

/// A conversation's own worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// The conversation.
    pub conversation: ConversationId,
    /// The number of this worker among the conversation's workers.
    pub generation: i64,
    /// The worker and its agent revision, if it is idle.
    pub idle: Option<(WorkerId, i32)>,
}

/// The last bytes of the ids of these principals' turns.
pub(in crate::store) fn marks(whose: &[Principal]) -> Vec<Vec<u8>> {
    whose.iter().map(|principal| principal.number().to_be_bytes().to_vec()).collect()
}

impl Store {
    /// Claims up to `limit` heads of lines, 512 at most. A turn that fits a ready worker is claimed as `running`: the
    /// caller must hand it over or give it back. All others are claimed as `starting`. `from`: where in the queue to
    /// begin. While a transaction is open elsewhere, the scan also reads every turn after `from` that was claimed since
    /// that transaction began. Turns that another session has locked are skipped ([`super::locked`]),
    /// and turns whose agent needs a higher reader level than this release has.
    pub async fn claim(
        &self,
        runtimes: &[Runtime],
        ready: &Ready,
        from: TurnId,
        limit: i64,
    ) -> Result<Vec<Claim>, StoreError> {
        let runtimes: Vec<_> = runtimes.iter().copied().map(Stored).collect();
        let ClaimColumns { warm, seats } = ClaimColumns::of(ready);
        let passed_over = self.passed_over().await;
        let mut lease = self.lease().await?;
        let rows = lease
            .run("claim", |c| {
                sqlx::query!(
                    r#"
                    with me as materialized (
                      -- What looks untouched may have been run before the database went back in time:
                      -- first everybody says what they know.
                      select $1::uuid as id where lastword.lw_may_claim_v1($1)),
                    -- Each row's company is looked up by itself, and few rows are expected: else a queue that
                    -- is deep has every conversation that ever was read for it.
                    head as materialized (
                      select * from (
                        -- What is decided on comes from the locked row, never from a second look.
                        select i.turn_id, i.conversation_id, i.agent, i.agent_revision, v.holder, v.generation
                          from lastword.inflight i
                         cross join lateral (
                           select c.holder, c.generation from lastword.conversations c where c.id = i.conversation_id limit 1) v
                         where i.phase = 'queued'
                           and i.turn_id >= $13
                           and i.runtime = any ($2)
                           -- Whose a turn is stands in the last bytes of its id.
                           and ($15::bytea[] = '{}' or substring(uuid_send(i.turn_id) from 15) <> all ($15))
                           and (i.agent || '@' || i.agent_revision) <> all ($16)
                           and i.conversation_id <> all ($17)
                           and i.reader_min <= $18
                           and exists (select from me)
                           and (select count(*) from (
                             select from lastword.inflight j
                              where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal
                              limit 1) before) = 0
                           -- Whoever served last may have a warm worker: it gets a head start.
                           and (v.holder is null or v.holder = $1 or i.head_at is null
                             or i.head_at < clock_timestamp() - interval '50 ms'
                             or not exists (select from lastword.replicas h where h.id = v.holder and h.state = 'ready'))
                         order by i.turn_id
                         limit 512
                           for update of i skip locked) heads
                       limit $3),
                    -- From here on the work of a row does not grow with the number of rows, whatever Postgres expects:
                    -- what belongs to a row is found by its place in a sorted array.
                    fit as materialized (
                      select h.turn_id, h.conversation_id, h.generation, coalesce(w.worker, s.worker) as worker,
                             w.is_warm is not true and s.worker is null as is_taken_over
                        from (
                          select *, width_bucket(conversation_id, $4::uuid[]) as place,
                                 row_number() over (partition by agent, agent_revision order by turn_id) as n
                            from head) h
                        left join lateral (
                          -- Null where the worker is busy, or of another revision.
                          select true as is_warm, case when ($7::int[])[h.place] = h.agent_revision
                                   then ($6::uuid[])[h.place] end as worker
                           where ($4::uuid[])[h.place] = h.conversation_id and ($5::bigint[])[h.place] = h.generation
                             and h.holder = $1) w on true
                        left join lateral (
                          select ($12::uuid[])[a.before + h.n] as worker
                            from unnest($8::text[], $9::int[], $10::int[], $11::int[]) a (agent, revision, count, before)
                           where a.agent = h.agent and a.revision = h.agent_revision and h.n <= a.count
                           limit 1) s on w.worker is null),
                    places as materialized (
                      select array_agg(turn_id) as turns, array_agg(generation) as generations,
                             array_agg(coalesce(worker, '00000000-0000-0000-0000-000000000000')) as workers,
                             clock_timestamp() as at
                        from (select * from fit order by turn_id) fit),
                    -- Another worker takes over wherever none is ready.
                    held as (
                      update lastword.conversations v
                         set holder = $1, holder_worker = null, generation = v.generation + 1
                       where v.id = any (array (select conversation_id from fit where is_taken_over))
                      returning v.id, v.generation),
                    taken as materialized (
                      select array_agg(id order by id) as ids, array_agg(generation order by id) as generations from held),
                    c as (
                      update lastword.inflight i
                         set epoch = i.epoch + 1, replica = $1, claimed_at = places.at,
                             (phase, worker, last_seq, clock, started_at, cap_at, deadline) = (
                               select case when w.worker is null then 'starting' else 'running' end, w.worker,
                                      i.last_seq + (w.worker is not null)::int,
                                      case when w.worker is null then 'startup' else 'progress' end,
                                      case when w.worker is not null then places.at end, w.cap_at,
                                      least(w.cap_at, places.at + interval '1 ms'
                                        * case when w.worker is null then i.startup_ms else i.progress_ms end)
                                 from (
                                   select nullif(places.workers[width_bucket(i.turn_id, places.turns)],
                                            '00000000-0000-0000-0000-000000000000') as worker,
                                          -- The cap runs from the first claim and never grows.
                                          case i.epoch when 0
                                            then places.at + i.cap_ms * interval '1 ms' else i.cap_at end as cap_at) w)
                        from places
                       where i.turn_id = any ((select turns from places)::uuid[]) and i.phase = 'queued'
                      returning i.turn_id, i.conversation_id, i.epoch, i.last_seq, i.cap_at, i.started_at, i.worker,
                        places.generations[width_bucket(i.turn_id, places.turns)] as generation,
                        coalesce(i.head_at, i.accepted_at) as head_at),
                    running as materialized (
                      select array_agg(turn_id) as turns, array_agg(epoch) as epochs
                        from (select * from c where worker is not null order by turn_id) c),
                    s as (
                      update lastword.turns t
                         set status = 'running', attempt = r.epochs[width_bucket(t.id, r.turns)], started_at = places.at
                        from places, running r
                       where t.id = any ((select turns from running)::uuid[])),
                    e as (
                      insert into lastword.turn_events (turn_id, seq, kind, attempt, data)
                      -- As any worker's start is told, but for its id.
                      select turn_id, last_seq, 'started', epoch,
                             replace($14, repeat('0', 32), replace(worker::text, '-', ''))
                        from c
                       where worker is not null)
                    select c.turn_id as "turn!", c.conversation_id as "conversation!", c.epoch as "epoch!",
                           c.last_seq as "last_seq!",
                           case when taken.ids[width_bucket(c.conversation_id, taken.ids)] = c.conversation_id
                             then taken.generations[width_bucket(c.conversation_id, taken.ids)]
                             else c.generation end as "generation!",
                           (extract(epoch from c.cap_at - clock_timestamp()) * 1000)::bigint as "cap_left_ms!",
                           (extract(epoch from clock_timestamp() - c.head_at) * 1000)::bigint as "waited_ms!",
                           c.worker, t.agent, t.agent_revision, t.ordinal, t.input, t.traceparent
                      from c
                     cross join taken
                     cross join lateral (select * from lastword.turns t where t.id = c.turn_id limit 1) t
                    "#,
                    self.replica().0,
                    &runtimes as &[Stored<Runtime>],
                    limit,
                    &warm.conversations,
                    &warm.generations,
                    &warm.workers,
                    &warm.revisions,
                    &seats.agents,
                    &seats.revisions,
                    &seats.counts,
                    &seats.befores,
                    &seats.workers,
                    from.0,
                    started_by(WorkerId(Uuid::nil())),
                    &marks(&ready.barred),
                    &self.agent_cache().unserved(),
                    &passed_over,
                    READS,
                )
                .fetch_all(c)
            })
            .await;
        drop(lease);
        let rows = self.note_if_locked(rows, from).await?;
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
        running.clone().for_each(|claim| self.seen_commits().saw(claim.turn, claim.epoch, claim.last_seq));
        self.wake().turns.events_committed(running.map(|claim| claim.turn));
        Ok(claims)
    }
}

/// The statement's parameters, one column each.
#[derive(Default)]
struct ClaimColumns {
    warm: WarmColumns,
    seats: SeatColumns,
}

/// Sorted by conversation. The revision [`BUSY`] matches no turn. The arrays contain no nulls, so that Postgres can
/// address an item without reading those before it.
#[derive(Default)]
struct WarmColumns {
    conversations: Vec<Uuid>,
    generations: Vec<i64>,
    workers: Vec<Uuid>,
    revisions: Vec<i32>,
}

/// One row per agent revision; `workers` has one entry per free slot: `counts` entries after the first `befores`.
#[derive(Default)]
struct SeatColumns {
    agents: Vec<String>,
    revisions: Vec<i32>,
    counts: Vec<i32>,
    befores: Vec<i32>,
    workers: Vec<Uuid>,
}

impl ClaimColumns {
    fn of(ready: &Ready) -> Self {
        let ClaimColumns { mut warm, mut seats } = ClaimColumns::default();
        let mut sorted: Vec<&Warm> = ready.warm.iter().collect();
        // Only the newest of a conversation's workers can match.
        sorted.sort_by_key(|warm| (warm.conversation, warm.generation));
        for &&Warm { conversation, generation, idle } in &sorted {
            warm.conversations.push(conversation.0);
            warm.generations.push(generation);
            let (worker, revision) =
                idle.map_or((Uuid::nil(), BUSY), |(worker, revision)| (worker.0, revision));
            warm.workers.push(worker);
            warm.revisions.push(revision);
        }
        let mut kinds: BTreeMap<(&str, i32), Vec<&Seats>> = BTreeMap::new();
        for some in &ready.seats {
            kinds.entry((&some.agent, some.revision)).or_default().push(some);
        }
        for ((agent, revision), rooms) in kinds {
            let before = seats.workers.len();
            for room in rooms {
                let count = usize::try_from(room.count).unwrap_or(0);
                seats.workers.extend(repeat_n(room.worker.0, count.min(HEADS_MAX)));
            }
            seats.agents.push(agent.to_owned());
            seats.revisions.push(revision);
            seats.counts.push((seats.workers.len() - before) as i32);
            seats.befores.push(before as i32);
        }
        ClaimColumns { warm, seats }
    }
}
