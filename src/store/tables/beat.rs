//! The beat: one statement on a reserved connection that says "I live" and sees who else does.
//!
//! A connection of its own, so that a busy pool never makes a replica look dead. It counts its own
//! row's beat, carries the session lock's key, and looks at each peer's count and lock. Touches
//! only the tiny `replicas` table; its cost grows with replicas, never with turns.

use std::time::Duration;

use crate::{
    id::ReplicaId,
    store::{
        error::{FailureReach, StoreError},
        handle::Store,
        pool::{conn::Conn, session::SessionPurpose},
    },
    telemetry::metrics,
};

/// How long a beat may take.
const BEAT_MAX: Duration = Duration::from_secs(2);
/// How long a login for it may take: on a busy machine some seconds.
const LOGIN_MAX: Duration = Duration::from_secs(4);

/// A peer as one beat saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSeen {
    /// Which replica.
    pub id: ReplicaId,
    /// Its count of beats.
    pub beat_n: i64,
    /// What is left of it in Postgres.
    pub trace: Trace,
}

/// What is left of a peer in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trace {
    /// Its session lock is held: its listener's connection is there.
    Lock,
    /// Its session lock is free, but a backend bears its name.
    Backends,
    /// Neither.
    Nothing,
}

/// What one beat brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BeatAnswer {
    /// Whether this replica's own row is still at work; false: it was judged.
    pub is_alive: bool,
    /// The timeline on which this replica has compared what it had seen, as its row tells.
    pub timeline: i32,
    /// The timeline that the database is on.
    pub timeline_now: i32,
    /// The peers at work.
    pub peers: Vec<PeerSeen>,
    /// Whether somebody was lost or left within the last minute: its claims may commit late.
    pub has_recent_loss: bool,
}

/// A replica that this one has just declared lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Which replica.
    pub id: ReplicaId,
    /// What its backends call themselves.
    pub application_name: String,
    /// Whether it had not compared what it had seen since the database went to another timeline: what
    /// it did in commits that were lost is not known to anybody.
    pub is_unreconciled: bool,
}

/// The reserved connection.
#[derive(Debug)]
pub struct BeatSession {
    conn: Conn,
    statement_max: Duration,
}

impl BeatSession {
    /// Connects, within 4 s.
    pub async fn open(store: &Store) -> Result<BeatSession, StoreError> {
        let connect = store.sessions().open_first("beat", SessionPurpose::Task(BEAT_MAX));
        match tokio::time::timeout(LOGIN_MAX, connect).await {
            Ok(conn) => {
                let conn = conn?;
                store.reachability().made();
                Ok(BeatSession { conn, statement_max: BEAT_MAX })
            }
            Err(_) => Err(failed(store, "beat", format!("no connection within {LOGIN_MAX:?}"))),
        }
    }

    /// One beat, within 2 s. After an error the session must be dropped.
    pub async fn beat(&mut self, store: &Store) -> Result<BeatAnswer, StoreError> {
        let beat = sqlx::query!(
            r#"
            with me as (
              update lastword.replicas
                 set beat_n = beat_n + 1, beat_at = clock_timestamp(), lock_key = $2
               where id = $1 and state in ('ready', 'draining')
              returning beat_n, timeline)
            select $1::uuid as "id!", beat_n as "beat_n!", false as "is_lock_free!", false as "is_bare!",
                   false as "is_gone!", timeline as "timeline!", lastword.lw_timeline_v1() as "timeline_now!"
              from me
            union all
            select r.id, r.beat_n,
                   p.is_lock_free,
                   -- Looked for only where it matters: the view costs more than the lock.
                   case when p.is_lock_free and r.gone_at is null then not exists (
                     select from pg_stat_activity a where a.application_name = r.application_name)
                   else false end,
                   r.gone_at is not null, 0, 0
              from lastword.replicas r
             cross join lateral (
               select case when r.gone_at is null then pg_try_advisory_xact_lock_shared(r.lock_key)
                      else true end as is_lock_free
               -- Once a peer: the lock is tried where it is read.
               offset 0) p
             where r.id <> $1
               and (r.gone_at is null or r.gone_at > clock_timestamp() - interval '1 minute')
            "#,
            store.replica().0,
            store.wake().lock_key()
        )
        .fetch_all(&mut self.conn);
        let rows = match tokio::time::timeout(self.statement_max, beat).await {
            Ok(rows) => rows.map_err(|why| broken(store, "beat", why))?,
            Err(_) => {
                metrics::db_errors("beat");
                return Err(failed(store, "beat", format!("no answer within {BEAT_MAX:?}")));
            }
        };
        store.reachability().heard();
        let mut seen = BeatAnswer::default();
        for row in rows {
            if row.id == store.replica().0 {
                seen.is_alive = true;
                (seen.timeline, seen.timeline_now) = (row.timeline, row.timeline_now);
            } else if row.is_gone {
                seen.has_recent_loss = true;
            } else {
                seen.peers.push(PeerSeen {
                    id: ReplicaId(row.id),
                    beat_n: row.beat_n,
                    trace: match (row.is_lock_free, row.is_bare) {
                        (false, _) => Trace::Lock,
                        (true, false) => Trace::Backends,
                        (true, true) => Trace::Nothing,
                    },
                });
            }
        }
        Ok(seen)
    }

    /// The verdict on a peer whose beat stands at `beat_n`; `None` where it was refuted, by a beat that
    /// came in between or, with `unless_backends_live`, by a backend of its that is still there. A
    /// statement of its own: in one with the beat it deadlocked. After an error the session must be
    /// dropped.
    pub async fn judge(
        &mut self,
        peer: ReplicaId,
        beat_n: i64,
        unless_backends_live: bool,
    ) -> Result<Option<Judged>, StoreError> {
        let verdict = sqlx::query!(
            r#"
            update lastword.replicas r
               set state = 'lost', gone_at = clock_timestamp()
             where r.id = $1 and r.state in ('ready', 'draining') and r.beat_n = $2
               and not ($3 and exists (
                 select from pg_stat_activity a where a.application_name = r.application_name))
            returning r.application_name as "application_name!", r.timeline <> lastword.lw_timeline_v1() as "is_unreconciled!"
            "#,
            peer.0,
            beat_n,
            unless_backends_live
        )
        .fetch_optional(&mut self.conn);
        match tokio::time::timeout(self.statement_max, verdict).await {
            Ok(row) => {
                let row = row.map_err(|why| StoreError::from_sqlx("judge", why))?;
                Ok(row.map(|row| Judged {
                    id: peer,
                    application_name: row.application_name,
                    is_unreconciled: row.is_unreconciled,
                }))
            }
            Err(_) => Err(StoreError::Away { op: "judge", why: format!("no answer within {BEAT_MAX:?}") }),
        }
    }
}

/// Every failure of the beat is one of its connection.
fn broken(store: &Store, op: &'static str, why: sqlx::Error) -> StoreError {
    let error = StoreError::from_sqlx(op, why);
    store.reachability().failed(FailureReach::Connection, &error);
    error
}

fn failed(store: &Store, op: &'static str, why: String) -> StoreError {
    let error = StoreError::Away { op, why };
    store.reachability().failed(FailureReach::Connection, &error);
    error
}
