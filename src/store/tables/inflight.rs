//! In-flight rows between claim ([`super::claim`]) and end ([`super::closing`]): start, release, hold.
//!
//! ```text
//!    ┌────────claim, accept: a worker is ready─────┐
//! queued ──claim──► starting ──start──► running ◄──┘ ──finish──► (gone)
//!   ▲                  │ release           │ release: safe, or untouched
//!   └──────────────────┴───────────────────┘
//! any phase ──cancel / close──► (gone)
//! ```
//! Keeps I5 (every write names turn and epoch) and I10 (`running` is committed before a worker receives the
//! first byte).

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    id::{ConversationId, TurnId, WorkerId},
    principal::Principal,
    store::{
        error::StoreError,
        handle::Store,
        records::claim::{Claim, started_by},
    },
};

/// What a replica holds, as the database knows it.
#[derive(Debug, Default)]
pub struct Held {
    /// Turns with their epochs, including those of a claim whose answer was lost; 10,000 at most.
    pub turns: HashMap<TurnId, i32>,
    /// Conversations that this replica's workers no longer serve: taken over by another worker, or deleted.
    pub taken_over: Vec<ConversationId>,
}

impl Store {
    /// How many turns of this principal are queued; counts up to `most`.
    pub async fn queued_of(&self, whose: Principal, most: u64) -> Result<u64, StoreError> {
        let front = self.wake().queue.front();
        let query = sqlx::query_scalar!(
            r#"
            select count(*) as "count!" from (
              select from lastword.inflight i
               where i.phase = 'queued' and i.turn_id >= $1 and substring(uuid_send(i.turn_id) from 15) = $2
               limit $3) q
            "#,
            front.0,
            &whose.number().to_be_bytes()[..],
            i64::try_from(most).unwrap_or(i64::MAX),
        );
        let counted = self.fetch_one("queued_of", query).await?;
        Ok(counted.unsigned_abs())
    }

    /// The turns that this replica holds, and those of the `warm` conversations that it no longer serves.
    pub async fn held(&self, warm: &[(ConversationId, i64)]) -> Result<Held, StoreError> {
        let (ids, generations): (Vec<Uuid>, Vec<i64>) = warm.iter().map(|(c, g)| (c.0, *g)).unzip();
        let query = sqlx::query!(
            r#"
            (select turn_id as "id!", epoch from lastword.inflight where replica = $1 limit 10000)
            union all
            select w.id, null
              from unnest($2::uuid[], $3::bigint[]) w (id, generation)
              left join lateral (select * from lastword.conversations c where c.id = w.id limit 1) v on true
             -- Also where it is deleted, or gone.
             where v.holder is distinct from $1 or v.generation <> w.generation or v.deleted_at is not null
            "#,
            self.replica().0,
            &ids,
            &generations,
        );
        let rows = self.fetch_all("held", query).await?;
        let mut held = Held::default();
        for row in rows {
            match row.epoch {
                Some(epoch) => _ = held.turns.insert(TurnId(row.id), epoch),
                None => held.taken_over.push(ConversationId(row.id)),
            }
        }
        Ok(held)
    }

    /// Gives up a claim that no longer runs here: the row has no holder, and the close pass queues the turn again or
    /// writes its last word.
    pub async fn disown(&self, turn: TurnId, epoch: i32) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "
            update lastword.inflight set replica = '00000000-0000-0000-0000-000000000000'
             where turn_id = $1 and epoch = $2 and replica = $3 and phase <> 'queued'
               -- Else it may be one that was run to its end, and lost: see `lw_reconcile_v1`.
               and lastword.lw_all_reconciled_v1()
            ",
            turn.0,
            epoch,
            self.replica().0
        );
        self.execute("disown", query).await?;
        self.wake().holder_gone();
        Ok(())
    }

    /// Extends deadlines that would lapse more than 5 s before the holder's own clock, since the database's clock was
    /// stepped or a lock delayed the turn's start. Changes no other row. `left`: turn, epoch, time left by the holder's
    /// clock.
    pub async fn hold(&self, left: &[(TurnId, i32, Duration)]) -> Result<u64, StoreError> {
        let turns: Vec<Uuid> = left.iter().map(|(turn, ..)| turn.0).collect();
        let epochs: Vec<i32> = left.iter().map(|(_, epoch, _)| *epoch).collect();
        let millis: Vec<i64> = left.iter().map(|(.., left)| crate::units::Span(*left).millis()).collect();
        let query = sqlx::query!(
            "
            with held as materialized (
              select w.turn_id, clock_timestamp() + w.left_ms * interval '1 ms' as until
                from (
                  select * from unnest($1::uuid[], $2::int[], $3::bigint[]) w (turn_id, epoch, left_ms)
                   order by turn_id) w
               cross join lateral (
                 select
                   from lastword.inflight i
                  where i.turn_id = w.turn_id and i.epoch = w.epoch and i.phase in ('starting', 'running')
                    and i.deadline < clock_timestamp() + (w.left_ms - 5000) * interval '1 ms'
                    and i.deadline < i.cap_at
                  limit 1
                    -- What somebody else holds is looked at again soon, and holds up nothing else.
                    for no key update skip locked) i),
            late as materialized (
              select array_agg(turn_id order by turn_id) as turns, array_agg(until order by turn_id) as untils
                from held)
            update lastword.inflight i
               set deadline = least(i.cap_at, late.untils[width_bucket(i.turn_id, late.turns)])
              from late
             where i.turn_id = any ((select turns from late)::uuid[])
            ",
            &turns,
            &epochs,
            &millis
        );
        let changed = self.execute("hold", query).await?;
        Ok(changed)
    }

    /// Those of these turns of which another session has locked a row: in flight, turn or conversation. Waits for none.
    pub(in crate::store) async fn locked(&self, turns: &[TurnId]) -> Result<HashSet<TurnId>, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let query = sqlx::query_scalar!(
            "
            select i.turn_id
              from lastword.inflight i
              join lastword.turns t on t.id = i.turn_id
              join lastword.conversations c on c.id = i.conversation_id
             where i.turn_id = any ($1::uuid[])
             order by i.turn_id
               for no key update of i, t, c skip locked
            ",
            &ids
        );
        let free = self.fetch_all("locked", query).await?;
        let free: HashSet<TurnId> = free.into_iter().map(TurnId).collect();
        Ok(turns.iter().copied().filter(|turn| !free.contains(turn)).collect())
    }

    /// Whether a claim is over: the row is gone, or has another epoch or holder.
    pub async fn is_over(&self, turn: TurnId, epoch: i32) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select not exists (select from lastword.inflight where turn_id = $1 and epoch = $2 and replica = $3) as "is!""#,
            turn.0,
            epoch,
            self.replica().0
        );
        self.fetch_one("is_over", query).await
    }

    /// Moves a turn from `starting` to `running` and appends `started`. Returns the event's `seq`, or `None` if the
    /// caller no longer holds the epoch or a cancel came first. A repeat is harmless.
    pub async fn start(&self, claim: &Claim, worker: Option<WorkerId>) -> Result<Option<i32>, StoreError> {
        let data = started_by(worker);
        let worker = worker.map(|w| w.0);
        let mut lease = self.lease().await?;
        let started = lease
            .run("start", |c| {
                sqlx::query_scalar!(
                    r#"
                    with u as (
                      update lastword.inflight i
                         set phase = 'running', worker = $3, last_seq = i.last_seq + 1, clock = 'progress',
                             started_at = clock_timestamp(),
                             deadline = least(i.cap_at, clock_timestamp() + i.progress_ms * interval '1 ms')
                       where i.turn_id = $1 and i.epoch = $2 and i.replica = $5 and i.phase = 'starting'
                         and i.cancelled_by is null
                         -- A claim that was committed across a verdict, or a leave, must not reach a worker.
                         and exists (select from lastword.replicas r where r.id = i.replica and r.state in ('ready', 'draining'))
                      returning i.turn_id, i.epoch, i.last_seq, i.started_at),
                    t as (
                      update lastword.turns set status = 'running', attempt = u.epoch, started_at = u.started_at
                        from u where id = $1),
                    e as (
                      insert into lastword.turn_events (turn_id, seq, kind, attempt, data)
                      select turn_id, last_seq, 'started', epoch, $4 from u)
                    select last_seq as "seq!" from u
                    "#,
                    claim.turn.0,
                    claim.epoch,
                    worker,
                    data,
                    self.replica().0,
                )
                .fetch_optional(c)
            })
            .await?;
        // An earlier attempt may have been committed while this one waited for the row's lock. Only a new statement,
        // with a new snapshot, can see that.
        let seq = match started {
            Some(seq) => Some(seq),
            None => {
                lease
                    .run("started", |c| {
                        sqlx::query_scalar!(
                            "
                            select last_seq from lastword.inflight
                             where turn_id = $1 and epoch = $2 and replica = $4 and phase = 'running'
                               and worker is not distinct from $3
                            ",
                            claim.turn.0,
                            claim.epoch,
                            worker,
                            self.replica().0,
                        )
                        .fetch_optional(c)
                    })
                    .await?
            }
        };
        if let Some(seq) = seq {
            self.seen_commits().saw(claim.turn, claim.epoch, seq);
            self.wake().turns.events_committed([claim.turn]);
        }
        Ok(seq)
    }

    /// Gives back a claimed turn that this release cannot run: its queue clock continues, and the claim counts as no
    /// attempt. False if the caller does not hold the turn.
    pub async fn decline(&self, turn: TurnId, epoch: i32) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select lastword.lw_decline_v1($1, $2, $3) as "is!""#,
            turn.0,
            epoch,
            self.replica().0
        );
        let is_declined = self.fetch_one("decline", query).await?;
        if is_declined {
            self.wake().queue.grew(turn);
        }
        Ok(is_declined)
    }

    /// Queues a turn again; false if the turn must not be run again, or the caller does not hold it. `is_untouched`: no
    /// worker has received the turn, whatever its phase.
    pub async fn release(&self, turn: TurnId, epoch: i32, is_untouched: bool) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select lastword.lw_release_v1($1, $2, $3, $4) as "is!""#,
            turn.0,
            epoch,
            self.replica().0,
            is_untouched
        );
        let is_released = self.fetch_one("release", query).await?;
        if is_released {
            self.wake().queue.grew(turn);
        }
        Ok(is_released)
    }
}
