//! Fixtures: thousands of queued turns for a measurement, written without a replica.
//!
//! Owns rows that look like accepted turns; ended turns are in [`super::history`]. For a private database only: the
//! rows bypass the API, so no client was promised anything. They keep every invariant that `verify` checks. Round trips
//! inside a transaction are acceptable here, since nothing else uses the database meanwhile.

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

/// A runtime that no replica hosts: turns with it stay queued.
const PARKED: &str = "parked";

/// The turns to make.
#[derive(Debug, Clone, Copy)]
pub struct ParkedTurns<'a> {
    /// The agent.
    pub agent: &'a str,
    /// The agent's revision.
    pub revision: i32,
    /// The user's text, the same in each turn.
    pub text: &'a str,
    /// The number of conversations.
    pub conversations: usize,
    /// Turns per conversation.
    pub turns_each: usize,
}

/// Totals of a set of turns.
#[derive(Debug, Clone, Copy)]
pub struct TurnTotals {
    /// How many have completed.
    pub completed: i64,
    /// When the last of them ended, by the database's clock.
    pub finished_at: Option<DateTime<Utc>>,
    /// Bytes of all their rows.
    pub bytes: i64,
}

/// An open transaction, which holds its snapshot until dropped.
#[derive(Debug)]
pub struct OpenTransaction {
    _conn: Conn,
}

impl Store {
    /// Makes queued turns that no replica claims. Returns their ids in order.
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

    /// Makes every parked turn claimable, and rings. Returns the time by the database's clock.
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

    /// Deletes every parked turn.
    pub async fn remove_parked(&self) -> Result<(), StoreError> {
        let query = sqlx::query!(
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
        );
        self.lease().await?.run("remove_parked", |c| query.execute(c)).await.map(drop)
    }

    /// Whether any turn has no last word yet, except parked ones.
    pub async fn is_busy(&self) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select /* lastword bench */ exists (select from lastword.inflight where runtime <> $1) as "is!""#,
            PARKED
        );
        self.fetch_one("is_busy", query).await
    }

    /// How many turns are `running`.
    pub async fn running(&self) -> Result<i64, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select /* lastword bench */ count(*) as "n!" from lastword.inflight where phase = 'running'"#
        );
        self.fetch_one("running", query).await
    }

    /// Totals of these turns.
    pub async fn weigh(&self, turns: &[TurnId]) -> Result<TurnTotals, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let query = sqlx::query_as!(
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
        );
        self.fetch_one("weigh", query).await
    }

    /// Opens a transaction in another session, so that vacuum cannot remove rows that it may still see.
    #[allow(clippy::disallowed_methods, reason = "several commands at once")]
    pub async fn hold_transaction(&self) -> Result<OpenTransaction, StoreError> {
        let mut conn = self.sessions().open("fixtures", SessionPurpose::Work).await?;
        // The first query takes the snapshot.
        let begin =
            sqlx::raw_sql("begin isolation level repeatable read; select count(*) from lastword.replicas");
        begin.execute(&mut conn).await.map_err(fixtures_error)?;
        Ok(OpenTransaction { _conn: conn })
    }
}

/// Inserts all rows in one transaction.
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
