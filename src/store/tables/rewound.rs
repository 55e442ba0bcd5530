//! A failover that lost commits: compares what was seen with what is in the database, and records the difference.
//!
//! Owns the table `rewound`. If no commit was lost, every statement here finds and changes nothing, so it may run at
//! any time.

use uuid::Uuid;

use crate::{
    event::Kind,
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        live::seen_commits::SeenCommit,
        records::word::{Loss, Stored},
    },
    word::Open,
};

/// The message of a turn that was cut off by lost commits.
const MESSAGE: &str = "The database lost a part of this turn; it cannot be continued.";

/// A turn that differs from what this replica has seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    /// The turn.
    pub turn: TurnId,
    /// What happened to the turn.
    pub how: Open<Loss>,
    /// Events that were seen and no longer exist.
    pub events_lost: i32,
}

/// Losses of all replicas, for operators.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Turns that were closed, changed or vanished.
    pub turns: i64,
    /// Events that were seen and no longer exist.
    pub events: i64,
    /// The turns among them whose acceptance was lost.
    pub vanished: i64,
}

impl Store {
    /// The database's timeline; 0 if Postgres does not tell it.
    pub async fn timeline(&self) -> Result<i32, StoreError> {
        let query = sqlx::query_scalar!(r#"select lastword.lw_timeline_v1() as "now!""#);
        self.fetch_one("timeline", query).await
    }

    /// Compares, closes turns that were cut off, and returns those not reported before. See `lw_reconcile_v1`.
    pub async fn reconcile(&self, seen: &[SeenCommit]) -> Result<Vec<Rewound>, StoreError> {
        let turns: Vec<Uuid> = seen.iter().map(|seen| seen.turn.0).collect();
        let epochs: Vec<i32> = seen.iter().map(|seen| seen.epoch).collect();
        let seqs: Vec<Option<i32>> = seen.iter().map(|seen| seen.seq).collect();
        let ends: Vec<Option<Stored<Kind>>> = seen.iter().map(|seen| seen.end.map(Stored)).collect();
        let query = sqlx::query!(
            r#"
            select o_turn as "turn!", o_how as "how!: Stored<Open<Loss>>", o_events_lost as "events_lost!"
              from lastword.lw_reconcile_v1($1, $2, $3, $4, $5)
            "#,
            &turns,
            &epochs,
            &seqs as &[Option<i32>],
            &ends as &[Option<Stored<Kind>>],
            MESSAGE,
        );
        let rows = self.fetch_all("reconcile", query).await?;
        let rewound: Vec<Rewound> = rows
            .into_iter()
            .map(|row| Rewound { turn: TurnId(row.turn), how: row.how.0, events_lost: row.events_lost })
            .collect();
        if !rewound.is_empty() {
            self.wake().turns.events_committed(rewound.iter().map(|rewound| rewound.turn));
            self.wake().queue.moved();
        }
        Ok(rewound)
    }

    /// Records in this replica's row that it has compared on `timeline`; false if the database has changed its timeline
    /// again.
    pub async fn set_reconciled(&self, timeline: i32) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "update lastword.replicas set timeline = $2 where id = $1 and lastword.lw_timeline_v1() = $2",
            self.replica().0,
            timeline
        );
        let changed = self.execute("set_reconciled", query).await?;
        // Other replicas may claim only after this one has compared.
        self.wake().queue.moved();
        Ok(changed == 1)
    }

    /// The `seq` from which a turn's log may differ from what was shown before; `None` for nearly all turns.
    pub async fn rewound_from(&self, turn: TurnId) -> Result<Option<i32>, StoreError> {
        let query = sqlx::query_scalar!("select seq from lastword.rewound where turn_id = $1", turn.0);
        self.fetch_optional("rewound_from", query).await
    }

    /// Losses within the last 90 days.
    pub async fn losses(&self) -> Result<Losses, StoreError> {
        let query = sqlx::query!(
            r#"
            select count(*) as "turns!", coalesce(sum(events_lost), 0)::bigint as "events!",
                   count(*) filter (where how = 'vanished') as "vanished!"
              from lastword.rewound where how <> 'unknown'
            "#
        );
        let row = self.fetch_one("losses", query).await?;
        Ok(Losses { turns: row.turns, events: row.events, vanished: row.vanished })
    }
}
