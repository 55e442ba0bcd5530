//! Masses: turns and history by the thousand, as a measurement needs them, written without a replica.
//!
//! Owns the making of rows that look as accepted turns do, and of years of ended ones. For a private
//! database alone: it goes around the doors, so nobody has been promised anything for these turns. What
//! it makes keeps every invariant that `verify` checks. Round trips inside a transaction are no fault
//! here: nobody else works meanwhile.

use std::time::Duration;

use chrono::{DateTime, Days, Utc};
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use super::{
    Store, StoreError,
    ringer::{CHANNEL, queue_payload},
};
use crate::id::TurnId;

/// What no replica hosts: turns of this runtime stay where they are.
const PARKED: &str = "parked";
/// History is spread over so many days, so that partitions matter as they would.
const HISTORY_DAYS: u64 = 20;
/// Turns of one conversation of a long history; a load without conversations to go on with makes one for each turn.
const TURNS_A_CONVERSATION: i64 = 5;
/// Rows that a statement on the way to 20 million makes, in turns.
const SLICE_TURNS: i64 = 20_000;

/// Turns to be made.
#[derive(Debug, Clone, Copy)]
pub struct Mass<'a> {
    /// The agent that they are for.
    pub agent: &'a str,
    /// The revision that they run with.
    pub revision: i32,
    /// What the user says in each.
    pub text: &'a str,
    /// How many conversations.
    pub conversations: usize,
    /// Turns in each of them.
    pub turns_each: usize,
}

/// What has become of turns.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// How many have completed.
    pub completed: i64,
    /// When the last of them ended, by the database's clock.
    pub finished_at: Option<DateTime<Utc>>,
    /// Bytes of all their rows.
    pub bytes: i64,
}

/// A transaction that is open, and holds its snapshot, until this is dropped.
#[derive(Debug)]
pub struct Held {
    _conn: PgConnection,
}

impl Store {
    /// Makes turns that wait where no replica takes them. Returns them in the order of their ids.
    pub async fn park(&self, mass: Mass<'_>) -> Result<Vec<TurnId>, StoreError> {
        let mut conn = self.options.connect().await.map_err(mass_error)?;
        let (mut turns, mut conversations, mut ordinals) = (Vec::new(), Vec::new(), Vec::new());
        let fresh: Vec<Uuid> = (0..mass.conversations).map(|_| self.clock().mint()).collect();
        for ordinal in 1..=mass.turns_each {
            for &conversation in &fresh {
                turns.push(self.clock().mint());
                conversations.push(conversation);
                ordinals.push(i64::try_from(ordinal).unwrap_or(i64::MAX));
            }
        }
        self.make_partitions().await?;
        let made = insert(&mut conn, &mass, &fresh, &turns, &conversations, &ordinals).await;
        made.map_err(mass_error)?;
        Ok(turns.into_iter().map(TurnId).collect())
    }

    /// Lets replicas take every parked turn, and rings for them. Returns when, by the database's clock.
    pub async fn unpark(&self) -> Result<DateTime<Utc>, StoreError> {
        let mut lease = self.lease().await?;
        let first = lease
            .run("unpark", |c| {
                sqlx::query_scalar!(
                    r#"
                    with ready as (
                      update inflight set runtime = 'process' where runtime = $1 returning turn_id)
                    select turn_id from ready order by turn_id limit 1
                    "#,
                    PARKED
                )
                .fetch_optional(c)
            })
            .await?;
        let now = lease
            .run("unpark", |c| sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(c))
            .await?;
        let payload = queue_payload(self.wake().sender(), first);
        lease
            .run("unpark", |c| {
                sqlx::query_scalar!("select pg_notify($1, $2)::text", CHANNEL, payload).fetch_one(c)
            })
            .await?;
        Ok(now)
    }

    /// Removes every parked turn, as if it had never been.
    pub async fn remove_parked(&self) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("remove_parked", |c| {
                sqlx::query!(
                    "
                    with gone as (
                      delete from inflight where runtime = $1 returning turn_id, conversation_id),
                    e as (
                      delete from turn_events using gone where turn_events.turn_id = gone.turn_id),
                    t as (
                      delete from turns using gone where id = gone.turn_id)
                    update conversations set deleted_at = clock_timestamp() from gone where id = gone.conversation_id
                    ",
                    PARKED
                )
                .execute(c)
            })
            .await
            .map(drop)
    }

    /// Whether any turn has no last word yet, parked ones aside.
    pub async fn is_busy(&self) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("is_busy", |c| {
                sqlx::query_scalar!(
                    r#"select /* lastword bench */ exists (select from inflight where runtime <> $1) as "is!""#,
                    PARKED
                )
                .fetch_one(c)
            })
            .await
    }

    /// How many turns a worker has.
    pub async fn running(&self) -> Result<i64, StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("running", |c| {
                sqlx::query_scalar!(
                    r#"select /* lastword bench */ count(*) as "n!" from inflight where phase = 'running'"#
                )
                .fetch_one(c)
            })
            .await
    }

    /// What has become of these turns.
    pub async fn weigh(&self, turns: &[TurnId]) -> Result<Weight, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let mut lease = self.lease().await?;
        lease
            .run("weigh", |c| {
                sqlx::query_as!(
                    Weight,
                    r#"
                    select /* lastword bench */
                           (select count(*) from turns t where t.id = any ($1) and t.status = 'completed') as "completed!",
                           (select max(t.finished_at) from turns t where t.id = any ($1)) as finished_at,
                           (select coalesce(sum(pg_column_size(t.*)), 0) from turns t where t.id = any ($1))
                           + (select coalesce(sum(pg_column_size(e.*)), 0) from turn_events e where e.turn_id = any ($1))
                           as "bytes!"
                    "#,
                    &ids
                )
                .fetch_one(c)
            })
            .await
    }

    /// Opens a transaction elsewhere, which holds back what vacuum may remove.
    #[allow(clippy::disallowed_methods, reason = "several commands at once")]
    pub async fn hold_transaction(&self) -> Result<Held, StoreError> {
        let mut conn = self.options.connect().await.map_err(mass_error)?;
        // The snapshot is taken by the first query.
        let begin = sqlx::raw_sql("begin isolation level repeatable read; select count(*) from replicas");
        begin.execute(&mut conn).await.map_err(mass_error)?;
        Ok(Held { _conn: conn })
    }
}

/// One transaction of inserts; the columns go in together.
async fn insert(
    conn: &mut PgConnection,
    mass: &Mass<'_>,
    fresh: &[Uuid],
    turns: &[Uuid],
    conversations: &[Uuid],
    ordinals: &[i64],
) -> Result<(), sqlx::Error> {
    let mut inside = conn.begin().await?;
    let input = serde_json::json!({ "text": mass.text }).to_string();
    sqlx::query!(
        "insert into conversations (id, agent, next_ordinal) select id, $2, $3 from unnest($1::uuid[]) id",
        fresh,
        mass.agent,
        i64::try_from(mass.turns_each).unwrap_or(i64::MAX) + 1,
    )
    .execute(&mut *inside)
    .await?;
    sqlx::query!(
        "
        insert into turns (id, conversation_id, ordinal, agent, agent_revision, input, traceparent)
        select id, conversation, ordinal, $4, $5, $6, '00-00000000000000000000000000000001-0000000000000001-00'
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        mass.agent,
        mass.revision,
        input,
    )
    .execute(&mut *inside)
    .await?;
    sqlx::query!(
        "
        insert into turn_events (turn_id, seq, kind, data)
        select id, 0, 'accepted', json_build_object(
                 'conversation_id', 'conv_' || replace(conversation::text, '-', ''), 'agent', $4::text,
                 'ordinal', ordinal)::text
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        mass.agent,
    )
    .execute(&mut *inside)
    .await?;
    sqlx::query!(
        "
        insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
          head_at, queue_ms, startup_ms, progress_ms, cap_ms)
        select id, conversation, ordinal, $4, $5, $6,
               clock_timestamp() + interval '1 hour', clock_timestamp() + interval '1 day',
               case when ordinal = 1 then clock_timestamp() end, 3600000, 60000, 3600000, 7200000
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        mass.agent,
        mass.revision,
        PARKED,
    )
    .execute(&mut *inside)
    .await?;
    inside.commit().await
}

/// How far the making of a history has come.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Turns so far.
    pub turns: i64,
    /// Their events.
    pub events: i64,
}

/// Where turns of a history lie in time.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    since: DateTime<Utc>,
    /// Conversations begin evenly over this time.
    span: Duration,
    /// The numbers of its turns, from the first of all on.
    numbers: (i64, i64),
    /// Turns of one conversation.
    turns_each: i64,
}

impl Store {
    /// Makes so many ended turns of so many events each (3 at least) and has Postgres take stock of them: over the last
    /// twenty days, five to a conversation, or evenly over the last `span`, each in its own. Tells now and then how far it has come.
    #[allow(clippy::disallowed_methods, reason = "a setting")]
    pub async fn make_history(
        &self,
        turns: i64,
        events_each: i32,
        span: Option<Duration>,
        mut tell: impl FnMut(Made),
    ) -> Result<(), StoreError> {
        let mut conn = self.options.connect().await.map_err(mass_error)?;
        // Nobody relies on these rows before all of them are there.
        sqlx::raw_sql("set synchronous_commit = off").execute(&mut conn).await.map_err(mass_error)?;
        let now = self.clock().now();
        let stretches = span.map_or_else(|| days(now, turns), |span| vec![last(now, span, turns)]);
        for stretch in stretches {
            let mut day = stretch.since.date_naive();
            while day <= (stretch.since + stretch.span).date_naive() {
                sqlx::query_scalar!("select lw_partition_make_v1($1)", day)
                    .fetch_one(&mut conn)
                    .await
                    .map_err(mass_error)?;
                day = day + Days::new(1);
            }
            let (mut made, until) = stretch.numbers;
            while made < until {
                let count = SLICE_TURNS.min(until - made);
                history_slice(&mut conn, stretch, made, count, events_each).await.map_err(mass_error)?;
                made += count;
                tell(Made { turns: made, events: made * i64::from(events_each) });
            }
        }
        self.take_stock(&mut conn).await.map_err(mass_error)
    }

    /// What autovacuum would do next, in the middle of a measurement.
    #[allow(clippy::disallowed_methods, reason = "no query: a command that cannot be prepared")]
    async fn take_stock(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        for command in [
            "vacuum (analyze) conversations",
            "vacuum (analyze) turns",
            "vacuum (analyze) turn_events",
            "checkpoint",
        ] {
            sqlx::raw_sql(command).execute(&mut *conn).await?;
        }
        Ok(())
    }
}

/// Each of the last twenty days, with as many turns.
fn days(now: DateTime<Utc>, turns: i64) -> Vec<Stretch> {
    let days = HISTORY_DAYS.cast_signed();
    let day = |n: i64| now.date_naive() - Days::new((days - n).unsigned_abs());
    let stretch = |n: i64| Stretch {
        since: day(n).and_time(chrono::NaiveTime::MIN).and_utc(),
        span: Duration::from_secs(86_000),
        numbers: (turns * n / days, turns * (n + 1) / days),
        turns_each: TURNS_A_CONVERSATION,
    };
    (0..days).map(stretch).collect()
}

/// The last `span`, all of whose turns have ended.
fn last(now: DateTime<Utc>, span: Duration, turns: i64) -> Stretch {
    let (since, span) = (now - span, span.saturating_sub(Duration::from_secs(10)));
    Stretch { since, span, numbers: (0, turns), turns_each: 1 }
}

/// Turns `from..from + count` of a history. Those of a conversation come one after the other.
async fn history_slice(
    conn: &mut PgConnection,
    stretch: Stretch,
    from: i64,
    count: i64,
    events_each: i32,
) -> Result<(), sqlx::Error> {
    let (first, until) = stretch.numbers;
    let conversations = (until - first).div_euclid(stretch.turns_each).max(1);
    let step_s = stretch.span.as_secs_f64() / conversations as f64;
    sqlx::query!(
        r#"
        with line as materialized (
          -- The first 48 bits of an id are its time; the rest must only differ.
          select n, begun, at, n % $4::bigint + 1 as ordinal,
                 overlay(md5('turn' || n)::uuid::text placing substr(lw_first_id(at)::text, 1, 13) || '-7' from 1)::uuid as id,
                 overlay(md5('conversation' || n / $4::bigint)::uuid::text
                   placing substr(lw_first_id(begun)::text, 1, 13) || '-7' from 1)::uuid as conversation
            from generate_series($2::bigint, $2::bigint + $3::bigint - 1) n
           cross join lateral (
             select $1::timestamptz + (n / $4::bigint - $6::bigint / $4::bigint) * $7::float8 * interval '1 s' as begun) c
           cross join lateral (select begun + n % $4::bigint * $5::int * interval '100 ms' as at) t),
        c as (
          insert into conversations (id, agent, next_ordinal, created_at)
          select distinct conversation, 'history', $4::bigint + 1, begun from line
              on conflict do nothing),
        t as (
          insert into turns (id, conversation_id, ordinal, agent, agent_revision, status, attempt, input,
            traceparent, created_at, started_at, finished_at, last_seq)
          select id, conversation, ordinal, 'history', 1, 'completed', 1, '{"text":"What was it, again?"}',
                 '00-00000000000000000000000000000001-0000000000000001-00',
                 at, at + interval '20 ms', at + ($5::int - 1) * interval '100 ms', $5::int - 1
            from line)
        insert into turn_events (turn_id, seq, kind, attempt, data, at)
        select id, seq,
               case seq when 0 then 'accepted' when 1 then 'started' when $5::int - 1 then 'completed' else 'delta' end,
               case seq when 0 then 0 else 1 end,
               case seq when 0 then '{"agent":"history","ordinal":' || ordinal || '}'
                        when 1 then '{"worker_id":null}'
                        when $5::int - 1 then '{"text":"","stop_reason":"end"}'
                        else '{"text":"twenty bytes of text"}' end,
               at + seq * interval '100 ms'
          from line cross join generate_series(0, $5::int - 1) seq
        "#,
        stretch.since,
        from,
        count,
        stretch.turns_each,
        events_each,
        first,
        step_s,
    )
    .execute(conn)
    .await
    .map(drop)
}

fn mass_error(why: sqlx::Error) -> StoreError {
    StoreError::from_sqlx("mass", why)
}
