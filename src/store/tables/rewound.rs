//! A database that went back in time: comparing what was seen with what is there, and what is told of it.
//!
//! Owns the table `rewound`. Every statement here finds nothing and changes nothing where no commit was
//! lost, so it may run at any time.

use uuid::Uuid;

use crate::{
    event::Kind,
    id::TurnId,
    store::{error::StoreError, handle::Store, live::seen_commits::SeenCommit},
};

/// What a client is told whose turn is cut off by lost commits.
const MESSAGE: &str = "The database lost a part of this turn; it cannot be continued.";

/// A turn that is not what this replica has seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    /// Which turn.
    pub turn: TurnId,
    /// `closed`, `changed` or `vanished`.
    pub how: String,
    /// Events that were seen and are not there.
    pub events_lost: i32,
}

/// What was lost, over all replicas, as operators see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Turns that were closed, that ended otherwise, or that vanished.
    pub turns: i64,
    /// Events that were seen and are not there.
    pub events: i64,
    /// Of the turns: those whose acceptance was lost.
    pub vanished: i64,
}

impl Store {
    /// The timeline that the database is on; 0 where it does not tell.
    pub async fn timeline(&self) -> Result<i32, StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("timeline", |c| {
                sqlx::query_scalar!(r#"select lastword.lw_timeline_v1() as "now!""#).fetch_one(c)
            })
            .await
    }

    /// Compares, closes what was cut off, and tells what nobody has told before. See `lw_reconcile_v1`.
    pub async fn reconcile(&self, seen: &[SeenCommit]) -> Result<Vec<Rewound>, StoreError> {
        let turns: Vec<Uuid> = seen.iter().map(|seen| seen.turn.0).collect();
        let epochs: Vec<i32> = seen.iter().map(|seen| seen.epoch).collect();
        let seqs: Vec<Option<i32>> = seen.iter().map(|seen| seen.seq).collect();
        let ends: Vec<Option<String>> =
            seen.iter().map(|seen| seen.end.map(Kind::as_str).map(str::to_owned)).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("reconcile", |c| {
                sqlx::query!(
                    r#"
                    select o_turn as "turn!", o_how as "how!", o_events_lost as "events_lost!"
                      from lastword.lw_reconcile_v1($1, $2, $3, $4, $5)
                    "#,
                    &turns,
                    &epochs,
                    &seqs as &[Option<i32>],
                    &ends as &[Option<String>],
                    MESSAGE,
                )
                .fetch_all(c)
            })
            .await?;
        let rewound: Vec<Rewound> = rows
            .into_iter()
            .map(|row| Rewound { turn: TurnId(row.turn), how: row.how, events_lost: row.events_lost })
            .collect();
        if !rewound.is_empty() {
            self.wake().turns.events_committed(rewound.iter().map(|rewound| rewound.turn));
            self.wake().queue.moved();
        }
        Ok(rewound)
    }

    /// Says in this replica's row that it has compared on `timeline`; false where the database has gone
    /// to yet another one meanwhile.
    pub async fn set_reconciled(&self, timeline: i32) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("set_reconciled", |c| {
                sqlx::query!(
                    "update lastword.replicas set timeline = $2 where id = $1 and lastword.lw_timeline_v1() = $2",
                    self.replica().0,
                    timeline
                )
                .execute(c)
            })
            .await?;
        // Others may have waited for this one.
        self.wake().queue.moved();
        Ok(done.rows_affected() == 1)
    }

    /// From which `seq` on a turn's log may have told something else before; `None` for all but a few.
    pub async fn rewound_from(&self, turn: TurnId) -> Result<Option<i32>, StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("rewound_from", |c| {
                sqlx::query_scalar!("select seq from lastword.rewound where turn_id = $1", turn.0)
                    .fetch_optional(c)
            })
            .await
    }

    /// What was lost within the last 90 days.
    pub async fn losses(&self) -> Result<Losses, StoreError> {
        let mut lease = self.lease().await?;
        let row = lease
            .run("losses", |c| {
                sqlx::query!(
                    r#"
                    select count(*) as "turns!", coalesce(sum(events_lost), 0)::bigint as "events!",
                           count(*) filter (where how = 'vanished') as "vanished!"
                      from lastword.rewound where how <> 'unknown'
                    "#
                )
                .fetch_one(c)
            })
            .await?;
        Ok(Losses { turns: row.turns, events: row.events, vanished: row.vanished })
    }
}
