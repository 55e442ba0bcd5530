//! A history: ended turns by the million, as a measurement needs them, written without a replica.
//!
//! Owns where they lie in time. For a private database alone, as [`super::fixtures`] is; keeps every invariant that `verify`
//! checks.

use std::time::Duration;

use chrono::{DateTime, Days, Utc};

use super::fixtures::fixtures_error;
use crate::store::{
    error::StoreError,
    handle::Store,
    pool::{conn::Conn, session::SessionPurpose},
};

/// History is spread over so many days, so that partitions matter as they would.
const HISTORY_DAYS: u64 = 20;
/// Turns of one conversation of a long history; a load without conversations to go on with makes one for each turn.
const TURNS_A_CONVERSATION: i64 = 5;
/// Rows that a statement on the way to 20 million makes, in turns.
const SLICE_TURNS: i64 = 20_000;

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
        let mut conn = self.sessions().open("history", SessionPurpose::Work).await?;
        // Nobody relies on these rows before all of them are there.
        sqlx::raw_sql("set synchronous_commit = off").execute(&mut conn).await.map_err(fixtures_error)?;
        let now = self.clock().now();
        let stretches = span.map_or_else(|| days(now, turns), |span| vec![last(now, span, turns)]);
        for stretch in stretches {
            let mut day = stretch.since.date_naive();
            while day <= (stretch.since + stretch.span).date_naive() {
                sqlx::query_scalar!("select lastword.lw_partition_make_v1($1)", day)
                    .fetch_one(&mut conn)
                    .await
                    .map_err(fixtures_error)?;
                day = day + Days::new(1);
            }
            let (mut made, until) = stretch.numbers;
            while made < until {
                let count = SLICE_TURNS.min(until - made);
                history_slice(&mut conn, stretch, made, count, events_each).await.map_err(fixtures_error)?;
                made += count;
                tell(Made { turns: made, events: made * i64::from(events_each) });
            }
        }
        self.take_stock(&mut conn).await.map_err(fixtures_error)
    }

    /// What autovacuum would do next, in the middle of a measurement.
    #[allow(clippy::disallowed_methods, reason = "no query: a command that cannot be prepared")]
    async fn take_stock(&self, conn: &mut Conn) -> Result<(), sqlx::Error> {
        for command in [
            "vacuum (analyze) lastword.conversations",
            "vacuum (analyze) lastword.turns",
            "vacuum (analyze) lastword.turn_events",
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
    conn: &mut Conn,
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
                 overlay(md5('turn' || n)::uuid::text placing substr(lastword.lw_first_id(at)::text, 1, 13) || '-7' from 1)::uuid as id,
                 overlay(md5('conversation' || n / $4::bigint)::uuid::text
                   placing substr(lastword.lw_first_id(begun)::text, 1, 13) || '-7' from 1)::uuid as conversation
            from generate_series($2::bigint, $2::bigint + $3::bigint - 1) n
           cross join lateral (
             select $1::timestamptz + (n / $4::bigint - $6::bigint / $4::bigint) * $7::float8 * interval '1 s' as begun) c
           cross join lateral (select begun + n % $4::bigint * $5::int * interval '100 ms' as at) t),
        c as (
          insert into lastword.conversations (id, agent, next_ordinal, created_at)
          select distinct conversation, 'history', $4::bigint + 1, begun from line
              on conflict do nothing),
        t as (
          insert into lastword.turns (id, conversation_id, ordinal, agent, agent_revision, status, attempt, input,
            traceparent, created_at, started_at, finished_at, last_seq)
          select id, conversation, ordinal, 'history', 1, 'completed', 1, '{"text":"What was it, again?"}',
                 '00-00000000000000000000000000000001-0000000000000001-00',
                 at, at + interval '20 ms', at + ($5::int - 1) * interval '100 ms', $5::int - 1
            from line)
        insert into lastword.turn_events (turn_id, seq, kind, attempt, data, at)
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
