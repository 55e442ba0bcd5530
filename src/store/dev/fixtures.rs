//! Fixtures: turns by the thousand, as a measurement needs them, written without a replica.
//!
//! Owns the making of rows that look as accepted turns do; ended ones are in [`super::history`]. For a private
//! database alone: it goes around the doors, so nobody has been promised anything for these turns. What
//! it makes keeps every invariant that `verify` checks. Round trips inside a transaction are no fault
//! here: nobody else works meanwhile.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        live::ring::queue_payload,
        pool::{conn::Conn, session::SessionPurpose},
    },
};

/// What no replica hosts: turns of this runtime stay where they are.
const PARKED: &str = "parked";

/// Turns to be made.
#[derive(Debug, Clone, Copy)]
pub struct ParkedTurns<'a> {
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
pub struct TurnTotals {
    /// How many have completed.
    pub completed: i64,
    /// When the last of them ended, by the database's clock.
    pub finished_at: Option<DateTime<Utc>>,
    /// Bytes of all their rows.
    pub bytes: i64,
}

/// A transaction that is open, and holds its snapshot, until this is dropped.
#[derive(Debug)]
pub struct OpenTransaction {
    _conn: Conn,
}

impl Store {
    /// Makes turns that wait where no replica takes them. Returns them in the order of their ids.
    pub async fn park(&self, wanted: ParkedTurns<'_>) -> Result<Vec<TurnId>, StoreError> {
        let mut conn = self.sessions().open("fixtures", SessionPurpose::Work).await?;
        let (mut turns, mut conversations, mut ordinals) = (Vec::new(), Vec::new(), Vec::new());
        let fresh: Vec<Uuid> = (0..wanted.conversations).map(|_| self.clock().mint()).collect();
        for ordinal in 1..=wanted.turns_each {
            for &conversation in &fresh {
                turns.push(self.clock().mint());
                conversations.push(conversation);
                ordinals.push(i64::try_from(ordinal).unwrap_or(i64::MAX));
            }
        }
        self.make_partitions().await?;
        let made = insert(&mut conn, &wanted, &fresh, &turns, &conversations, &ordinals).await;
        made.map_err(fixtures_error)?;
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
                      update lastword.inflight set runtime = 'process' where runtime = $1 returning turn_id)
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
        let payload = queue_payload(self.wake().rings.sender(), first);
        lease
            .run("unpark", |c| {
                let channel = c.schema.channel();
                sqlx::query_scalar!("select pg_notify($1, $2)::text", &*channel, payload).fetch_one(c)
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
                      delete from lastword.inflight where runtime = $1 returning turn_id, conversation_id),
                    e as (
                      delete from lastword.turn_events using gone where turn_events.turn_id = gone.turn_id),
                    t as (
                      delete from lastword.turns using gone where id = gone.turn_id)
                    update lastword.conversations set deleted_at = clock_timestamp() from gone where id = gone.conversation_id
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
                    r#"select /* lastword bench */ exists (select from lastword.inflight where runtime <> $1) as "is!""#,
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
                    r#"select /* lastword bench */ count(*) as "n!" from lastword.inflight where phase = 'running'"#
                )
                .fetch_one(c)
            })
            .await
    }

    /// What has become of these turns.
    pub async fn weigh(&self, turns: &[TurnId]) -> Result<TurnTotals, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let mut lease = self.lease().await?;
        lease
            .run("weigh", |c| {
                sqlx::query_as!(
                    TurnTotals,
                    r#"
                    select /* lastword bench */
                           (select count(*) from lastword.turns t where t.id = any ($1) and t.status = 'completed') as "completed!",
                           (select max(t.finished_at) from lastword.turns t where t.id = any ($1)) as finished_at,
                           (select coalesce(sum(pg_column_size(t.*)), 0) from lastword.turns t where t.id = any ($1))
                           + (select coalesce(sum(pg_column_size(e.*)), 0) from lastword.turn_events e where e.turn_id = any ($1))
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
    pub async fn hold_transaction(&self) -> Result<OpenTransaction, StoreError> {
        let mut conn = self.sessions().open("fixtures", SessionPurpose::Work).await?;
        // The snapshot is taken by the first query.
        let begin =
            sqlx::raw_sql("begin isolation level repeatable read; select count(*) from lastword.replicas");
        begin.execute(&mut conn).await.map_err(fixtures_error)?;
        Ok(OpenTransaction { _conn: conn })
    }
}

/// One transaction of inserts; the columns go in together.
#[allow(clippy::disallowed_methods, reason = "begin and commit")]
async fn insert(
    conn: &mut Conn,
    wanted: &ParkedTurns<'_>,
    fresh: &[Uuid],
    turns: &[Uuid],
    conversations: &[Uuid],
    ordinals: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("begin").execute(&mut *conn).await?;
    let input = serde_json::json!({ "text": wanted.text }).to_string();
    sqlx::query!(
        "insert into lastword.conversations (id, agent, next_ordinal) select id, $2, $3 from unnest($1::uuid[]) id",
        fresh,
        wanted.agent,
        i64::try_from(wanted.turns_each).unwrap_or(i64::MAX) + 1,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "
        insert into lastword.turns (id, conversation_id, ordinal, agent, agent_revision, input, traceparent)
        select id, conversation, ordinal, $4, $5, $6, '00-00000000000000000000000000000001-0000000000000001-00'
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        wanted.agent,
        wanted.revision,
        input,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "
        insert into lastword.turn_events (turn_id, seq, kind, data)
        select id, 0, 'accepted', json_build_object(
                 'conversation_id', 'conv_' || replace(conversation::text, '-', ''), 'agent', $4::text,
                 'ordinal', ordinal)::text
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        wanted.agent,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "
        insert into lastword.inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
          head_at, queue_ms, startup_ms, progress_ms, cap_ms)
        select id, conversation, ordinal, $4, $5, $6,
               clock_timestamp() + interval '1 hour', clock_timestamp() + interval '1 day',
               case when ordinal = 1 then clock_timestamp() end, 3600000, 60000, 3600000, 7200000
          from unnest($1::uuid[], $2::uuid[], $3::bigint[]) m (id, conversation, ordinal)
        ",
        turns,
        conversations,
        ordinals,
        wanted.agent,
        wanted.revision,
        PARKED,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::raw_sql("commit").execute(conn).await.map(drop)
}

pub(in crate::store) fn fixtures_error(why: sqlx::Error) -> StoreError {
    StoreError::from_sqlx("fixtures", why)
}
