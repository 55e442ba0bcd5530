//! Closing: which turns are due, and the last words that any replica may write for them.
//!
//! Keeps I2 and I6. `lw_close_v1` decides what to close, behind the rows' locks. This file only names the turns that a
//! living holder has left overdue.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    event::Kind,
    failure::Code,
    id::TurnId,
    store::{error::StoreError, handle::Store, records::word::Stored},
    turn::Status,
    word::Open,
};

/// An in-flight row past its deadline whose holder lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Overdue {
    /// The turn.
    pub turn: TurnId,
    /// The epoch.
    pub epoch: i32,
    /// The deadline. A changed deadline is a sign of life.
    pub deadline: DateTime<Utc>,
}

/// The state of the in-flight table, for the close pass.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Rows of living holders that are past their deadline, 1000 at most.
    pub overdue: Vec<Overdue>,
    /// Milliseconds until the next deadline of any row; `None` if there is none ahead.
    pub next_ms: Option<i64>,
    /// Rows in flight.
    pub rows: i64,
    /// Rows that nobody has claimed.
    pub queued: i64,
    /// Rows that can be closed at once: queued past their deadline, or held by a replica that is gone.
    pub closable: i64,
}

/// The result of closing one turn: a last word, or queued again.
#[derive(Debug, Clone)]
pub struct Closed {
    /// The turn.
    pub turn: TurnId,
    /// `failed`, `cancelled` or `queued`.
    pub status: Open<Status>,
    /// The failure's code.
    pub code: Open<Code>,
    /// The turn's agent.
    pub agent: String,
}

impl Closed {
    /// The kind of the last word; `None` if the turn is queued again.
    pub fn last_word(&self) -> Option<Kind> {
        self.status.clone().known().ok()?.last_word()
    }
}

impl Store {
    /// What is due, and when to look again. Also surveys the queue ([`crate::store::queue_hints`]), so only one may
    /// run.
    pub async fn outlook(&self) -> Result<Outlook, StoreError> {
        let survey = self.wake().queue.survey(TurnId(self.clock().mint()));
        let query = sqlx::query!(
            r#"
            with row as materialized (
              select i.turn_id, i.epoch, i.deadline,
                     i.phase <> 'queued' as is_claimed,
                     not lastword.lw_is_left_v1(i, r) as is_alive,
                     -- When the worker's time to call another replica is over.
                     case when r.gone_at is null then i.deadline
                       else least(i.deadline, r.gone_at + interval '2505 ms') end as due_at,
                     i.deadline <= clock_timestamp() as is_overdue
                from lastword.inflight i left join lastword.replicas r on r.id = i.replica),
            sum as (
              select count(*) as rows,
                     count(*) filter (where not is_claimed) as queued,
                     (select turn_id from row where not is_claimed order by turn_id limit 1) as first_queued,
                     count(*) filter (where is_claimed and not is_alive
                       or is_overdue and not is_claimed) as closable,
                     min(due_at) filter (where due_at > clock_timestamp()) as next_at
                from row)
            select sum.rows as "rows!", sum.queued as "queued!", sum.closable as "closable!", sum.first_queued,
                   (extract(epoch from sum.next_at - clock_timestamp()) * 1000)::bigint as next_ms,
                   row.turn_id as "turn?", row.epoch as "epoch?", row.deadline as "deadline?"
              from sum left join (
                select * from row where is_overdue and is_claimed and is_alive order by deadline limit 1000) row on true
            "#
        );
        let rows = self.fetch_all("outlook", query).await?;
        survey.found(rows.first().and_then(|row| row.first_queued).map(TurnId));
        let mut outlook = Outlook::default();
        for row in rows {
            outlook.rows = row.rows;
            outlook.queued = row.queued;
            outlook.closable = row.closable;
            outlook.next_ms = row.next_ms;
            if let (Some(turn), Some(epoch), Some(deadline)) = (row.turn, row.epoch, row.deadline) {
                outlook.overdue.push(Overdue { turn: TurnId(turn), epoch, deadline });
            }
        }
        Ok(outlook)
    }

    /// Writes the last words that are due, or queues turns again (`lw_close_v1`): at most `limit` turns.
    pub async fn close_due(&self, overdue: &[TurnId], limit: i32) -> Result<Vec<Closed>, StoreError> {
        let overdue: Vec<Uuid> = overdue.iter().map(|turn| turn.0).collect();
        let words: serde_json::Map<String, serde_json::Value> = Code::ALL
            .into_iter()
            .map(|code| {
                let word = serde_json::json!({ "message": code.message(), "retryable": code.is_retryable() });
                (code.as_str().to_owned(), word)
            })
            .collect();
        let words = serde_json::Value::Object(words).to_string();
        let query = sqlx::query!(
            r#"
            select o_turn as "turn!", o_kind as "status!: Stored<Open<Status>>",
                   o_code as "code!: Stored<Open<Code>>", o_agent as "agent!"
              from lastword.lw_close_v1($1, $2::text::jsonb, $3)
            "#,
            &overdue,
            words,
            limit,
        );
        let rows = self.fetch_all("close", query).await?;
        let closed: Vec<Closed> = rows
            .into_iter()
            .map(|row| Closed {
                turn: TurnId(row.turn),
                status: row.status.0,
                code: row.code.0,
                agent: row.agent,
            })
            .collect();
        for word in &closed {
            if let Some(kind) = word.last_word() {
                self.seen_commits().saw_end(word.turn, 0, None, kind);
            }
        }
        if !closed.is_empty() {
            let again = closed.iter().filter(|closed| closed.status == Status::Queued);
            self.wake().turns.events_committed(closed.iter().map(|closed| closed.turn));
            if let Some(first) = again.map(|closed| closed.turn).min() {
                self.wake().queue.grew(first);
            }
            self.wake().queue.moved();
        }
        Ok(closed)
    }

    /// Starts the queue clock of turns that became heads of their lines unnoticed; whether there were any.
    pub async fn promote(&self) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let statement =
            |c| sqlx::query_scalar!(r#"select lastword.lw_promote_v1(null) as next"#).fetch_one(c);
        let next = lease.run("promote", statement).await?.map(TurnId);
        if let Some(next) = next {
            self.wake().queue.grew(next);
        }
        Ok(next.is_some())
    }
}
