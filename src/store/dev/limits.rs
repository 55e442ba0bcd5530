//! The limits of this Postgres on this machine: what its statements cost when nothing of ours is
//! around them. `lastword bench` holds what it measures against these, taken in the same run.
//!
//! Owns a schema of its own and three connections. One call is one sample; a series of them is its
//! caller's. Refuses to say anything of the gateway's own tables.

use std::time::{Duration, Instant};

use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::store::{
    error::StoreError,
    handle::Store,
    pool::{conn::Conn, session::SessionPurpose},
};

/// The channel that a wake-up is measured on.
const CHANNEL: &str = "lastword_limits";
/// How long a wake-up may take before it counts as lost.
const WAKE_MAX: Duration = Duration::from_secs(5);

/// Connections to measure on.
#[derive(Debug)]
pub struct MachineLimits {
    conn: Conn,
    sender: Conn,
    listener: PgListener,
    /// How many rows were inserted; each gets a number of its own.
    inserted: i64,
}

impl Store {
    /// Connections and tables to measure limits with.
    pub async fn limits(&self) -> Result<MachineLimits, StoreError> {
        MachineLimits::open(self).await.map_err(limits)
    }
}

#[allow(clippy::disallowed_methods, reason = "tables of the measurement's own, which no migration makes")]
impl MachineLimits {
    async fn open(store: &Store) -> Result<MachineLimits, sqlx::Error> {
        let mut conn =
            store.sessions().open("limits", SessionPurpose::Work).await.map_err(StoreError::into_sqlx)?;
        sqlx::raw_sql(
            "
            drop schema if exists lastword_limits cascade;
            create schema lastword_limits;
            create table lastword_limits.commits (n bigint primary key, data text not null);
            create table lastword_limits.rows (
              turn_id uuid not null, seq bigint not null, data text not null, primary key (turn_id, seq));
            ",
        )
        .execute(&mut conn)
        .await?;
        let listener = store.listener_sessions().listener("limits", WAKE_MAX).await;
        let mut listener = listener.map_err(StoreError::into_sqlx)?;
        listener.listen(CHANNEL).await?;
        let sender =
            store.sessions().open("limits", SessionPurpose::Work).await.map_err(StoreError::into_sqlx)?;
        Ok(MachineLimits { conn, sender, listener, inserted: 0 })
    }

    /// `select 1`: a round trip.
    pub async fn round_trip(&mut self) -> Result<Duration, StoreError> {
        let began = Instant::now();
        sqlx::query("select 1").execute(&mut self.conn).await.map_err(limits)?;
        Ok(began.elapsed())
    }

    /// One row inserted and committed, as one statement.
    pub async fn commit(&mut self) -> Result<Duration, StoreError> {
        self.inserted += 1;
        let insert = sqlx::query("insert into lastword_limits.commits (n, data) values ($1, $2)")
            .bind(self.inserted)
            .bind("twenty bytes of text");
        let began = Instant::now();
        insert.execute(&mut self.conn).await.map_err(limits)?;
        Ok(began.elapsed())
    }

    /// From a NOTIFY on one connection to the moment at which another one has it.
    pub async fn wake_up(&mut self) -> Result<Duration, StoreError> {
        let began = Instant::now();
        let ring = sqlx::query("select pg_notify($1, '')").bind(CHANNEL).execute(&mut self.sender);
        let hear = async {
            let heard = tokio::time::timeout(WAKE_MAX, self.listener.try_recv()).await;
            (heard, began.elapsed())
        };
        let (rung, (heard, took)) = tokio::join!(ring, hear);
        rung.map_err(limits)?;
        match heard {
            Ok(Ok(Some(_))) => Ok(took),
            Ok(Err(why)) => Err(limits(why)),
            Ok(Ok(None)) | Err(_) => {
                Err(StoreError::Away { op: "limits", why: "a notification did not come".to_owned() })
            }
        }
    }

    /// So many rows of twenty bytes of text, inserted and committed by one statement.
    pub async fn insert_rows(&mut self, rows: i64) -> Result<Duration, StoreError> {
        let turns =
            vec![Uuid::from_u128(self.inserted.unsigned_abs().into()); usize::try_from(rows).unwrap_or(0)];
        let seqs: Vec<i64> = (self.inserted..self.inserted + rows).collect();
        let data = vec!["twenty bytes of text".to_owned(); turns.len()];
        self.inserted += rows;
        let insert = sqlx::query(
            "insert into lastword_limits.rows (turn_id, seq, data)
             select * from unnest($1::uuid[], $2::bigint[], $3::text[])",
        )
        .bind(turns)
        .bind(seqs)
        .bind(data);
        let began = Instant::now();
        insert.execute(&mut self.conn).await.map_err(limits)?;
        Ok(began.elapsed())
    }

    /// Empties the tables, so that a long run measures the same as a short one.
    pub async fn clear(&mut self) -> Result<(), StoreError> {
        let clear = sqlx::raw_sql("truncate lastword_limits.commits, lastword_limits.rows");
        clear.execute(&mut self.conn).await.map_err(limits).map(drop)
    }
}

fn limits(why: sqlx::Error) -> StoreError {
    StoreError::from_sqlx("limits", why)
}
