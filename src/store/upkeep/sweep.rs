//! Sweeping: deletes what is past its retention, oldest first, in batches.
//!
//! Owns a connection of its own: a batch is limited by its rows, and must not fall under the statement deadline of the
//! pool. One replica at a time sweeps turns; the others notice and do nothing.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        pool::{conn::Conn, session::SessionPurpose},
    },
};

/// Deadline of one batch.
const BATCH_TAKES_MAX: Duration = Duration::from_secs(60);
/// Rows of one batch, approximately.
const BATCH_ROWS: i32 = 10_000;
/// Conversations examined by one batch.
const BATCH_CONVERSATIONS: i32 = 2000;
/// 2023-01-01: before the first release.
const FIRST_TURN: DateTime<Utc> = DateTime::from_timestamp_secs(1_672_531_200).unwrap();
/// Most rows per kind and call of the smaller tables.
pub const BATCH_REST: u64 = 5000;

/// A connection for sweeps.
#[derive(Debug)]
pub struct Sweeper {
    conn: Conn,
}

/// The result of one batch.
#[derive(Debug, Clone, Copy)]
pub struct Swept {
    /// The last id examined; `None` if nothing is left, or another replica is sweeping.
    pub last: Option<Uuid>,
    /// Turns deleted.
    pub turns: i32,
    /// Their events deleted.
    pub events: i32,
    /// Conversations deleted, since they had no turn left.
    pub conversations: i32,
}

impl Store {
    /// Connects.
    pub async fn sweeper(&self) -> Result<Sweeper, StoreError> {
        let conn = self.sessions().open("sweep", SessionPurpose::Task(BATCH_TAKES_MAX)).await?;
        Ok(Sweeper { conn })
    }

    /// Whether a turn's id is older than the retention. Ids from before the first release were never issued.
    pub fn is_past(&self, turn: TurnId) -> bool {
        turn.0 >= first_id(FIRST_TURN) && turn.0 < first_id(self.kept_from())
    }

    fn kept_from(&self) -> DateTime<Utc> {
        let retain = TimeDelta::from_std(self.retain()).unwrap_or(TimeDelta::MAX);
        self.clock().now().checked_sub_signed(retain).unwrap_or(DateTime::UNIX_EPOCH)
    }

    /// Deletes replicas gone for a day; workers that ended a day ago, and idempotency keys and orders of two days ago,
    /// or sooner if `retain` is shorter; records of lost commits after 90 days. At most [`BATCH_REST`] of each. Returns
    /// the largest count of any kind.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let retain_s = self.retain().as_secs_f64();
        let query = sqlx::query_scalar!(
            r#"
            with r as (
              delete from lastword.replicas where id in (
                select r.id from lastword.replicas r
                 where r.gone_at < clock_timestamp() - interval '1 day'
                   and not exists (select from lastword.inflight i where i.replica = r.id)
                 limit 1000) returning 1),
            w as (
              delete from lastword.workers where id in (
                select id from lastword.workers
                 where state = 'ended'
                   and ended_at < clock_timestamp() - least(interval '1 day', $1 * interval '1 s')
                 order by ended_at limit $2) returning 1),
            k as (
              -- Sooner than its turn, so that no key leads to one that is gone.
              delete from lastword.idempotency where key in (
                select key from lastword.idempotency
                 where created_at < clock_timestamp() - least(interval '2 days', $1 * 0.95 * interval '1 s')
                 order by created_at limit $2) returning 1),
            c as (
              delete from lastword.commands where id in (
                select c.id from lastword.commands c
                 where c.created_at < clock_timestamp() - least(interval '2 days', $1 * interval '1 s')
                   and not exists (select from lastword.inflight i where i.turn_id = c.turn_id)
                 order by c.created_at limit $2) returning 1),
            b as (
              delete from lastword.rewound where turn_id in (
                select turn_id from lastword.rewound
                 where at < clock_timestamp() - interval '90 days'
                 order by at limit $2) returning 1)
            select greatest((select count(*) from r), (select count(*) from w), (select count(*) from k),
                     (select count(*) from c), (select count(*) from b)) as "most!"
            "#,
            retain_s,
            i64::try_from(BATCH_REST).unwrap_or(i64::MAX)
        );
        let swept = self.fetch_one("sweep", query).await?;
        Ok(swept.unsigned_abs())
    }
}

impl Sweeper {
    /// Deletes ended turns after the id `after` and older than `keep_from`, with all their data.
    pub async fn turns(&mut self, after: Uuid, keep_from: DateTime<Utc>) -> Result<Swept, StoreError> {
        let row = sqlx::query!(
            r#"
            select o_last as last, o_turns as "turns!", o_events as "events!", o_conversations as "conversations!"
              from lastword.lw_sweep_turns_v1($1, $2, $3)
            "#,
            after,
            first_id(keep_from),
            BATCH_ROWS
        )
        .fetch_one(&mut self.conn)
        .await
        .map_err(sweeping)?;
        let (turns, events, conversations) = (row.turns, row.events, row.conversations);
        Ok(Swept { last: row.last, turns, events, conversations })
    }

    /// Deletes conversations without turns, after the id `after` and older than `keep_from`.
    pub async fn empty(&mut self, after: Uuid, keep_from: DateTime<Utc>) -> Result<Swept, StoreError> {
        let row = sqlx::query!(
            r#"select o_last as last, o_conversations as "conversations!" from lastword.lw_sweep_empty_v1($1, $2, $3)"#,
            after,
            first_id(keep_from),
            BATCH_CONVERSATIONS
        )
        .fetch_one(&mut self.conn)
        .await
        .map_err(sweeping)?;
        Ok(Swept { last: row.last, turns: 0, events: 0, conversations: row.conversations })
    }
}

/// The smallest id of a moment: the first 48 bits of an id are its time in milliseconds.
fn first_id(at: DateTime<Utc>) -> Uuid {
    let ms = u128::from(at.timestamp_millis().max(0).unsigned_abs());
    Uuid::from_u128(ms << 80)
}

/// The time from which ended turns are kept: `retain` ago or, if `retain` is two days or more, the start of that day,
/// since the log is dropped in whole days. `None`: everything is kept.
pub fn keep_from(now: DateTime<Utc>, retain: Duration) -> Option<DateTime<Utc>> {
    let keep_from = now.checked_sub_signed(TimeDelta::from_std(retain).ok()?)?;
    let is_in_days = retain >= Duration::from_secs(2 * 86_400);
    Some(if is_in_days {
        keep_from.date_naive().and_time(chrono::NaiveTime::MIN).and_utc()
    } else {
        keep_from
    })
}

fn sweeping(why: sqlx::Error) -> StoreError {
    StoreError::from_sqlx("sweep", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_retention_goes_by_days_and_a_short_one_by_the_moment() {
        let now: DateTime<Utc> = "2026-11-30T09:30:00Z".parse().unwrap();
        let from = |hours: u64| keep_from(now, Duration::from_secs(hours * 3600)).unwrap().to_rfc3339();
        assert_eq!(from(1), "2026-11-30T08:30:00+00:00");
        assert_eq!(from(47), "2026-11-28T10:30:00+00:00");
        assert_eq!(from(48), "2026-11-28T00:00:00+00:00");
        assert_eq!(keep_from(now, Duration::MAX), None);
    }
}
