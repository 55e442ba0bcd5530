//! Orders to the holder of a turn (cancel, answer), and requests to stop a worker.
//!
//! An order is marked as taken only after it was carried out: if its reader dies the next holder reads it again.
//! Carrying out an order twice is harmless. A question takes one answer, by a unique key.

use uuid::Uuid;

use crate::{
    id::{TurnId, WorkerId},
    store::{
        error::StoreError,
        handle::Store,
        records::word::{OrderKind, Stored},
    },
    turn::CancelledBy,
    word::Open,
};

/// An order for the holder of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Id, to mark the order as taken.
    pub id: i64,
    /// The turn.
    pub turn: TurnId,
    /// The order.
    pub order: Order,
}

/// What a holder has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Stop the turn. The in-flight row names who asked.
    Cancel {
        /// Who asked.
        by: Open<CancelledBy>,
    },
    /// Pass an answer to the worker.
    Answer {
        /// The id of the question.
        ask_id: String,
        /// The answer: JSON text.
        answer: String,
    },
}

impl Store {
    /// Stores an answer for a turn's holder; false if the question has an answer already.
    pub async fn leave_answer(&self, turn: TurnId, ask_id: &str, answer: &str) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "
            insert into lastword.commands (turn_id, kind, ask_id, answer) values ($1, 'answer', $2, $3)
            on conflict (turn_id, ask_id) do nothing
            ",
            turn.0,
            ask_id,
            answer
        );
        let changed = self.execute("leave_answer", query).await?;
        self.wake().orders_left();
        Ok(changed == 1)
    }

    /// Orders for these turns that are not taken yet, oldest first, 1000 at most.
    pub async fn commands(&self, turns: &[TurnId]) -> Result<Vec<Command>, StoreError> {
        let turns: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let query = sqlx::query!(
            r#"
            select c.id, c.turn_id, c.kind as "kind: Stored<Open<OrderKind>>", c.ask_id, c.answer,
                   i.cancelled_by as "cancelled_by?: Stored<Open<CancelledBy>>"
              from lastword.commands c
              left join lateral (
                select cancelled_by from lastword.inflight i where i.turn_id = c.turn_id limit 1) i on true
             where c.turn_id = any ($1) and c.taken_at is null
             order by c.id
             limit 1000
            "#,
            &turns
        );
        let rows = self.fetch_all("commands", query).await?;
        // A newer release's order is nothing that this release can carry out.
        let commands = rows.into_iter().filter_map(|row| {
            let order = match row.kind.0.known().ok()? {
                OrderKind::Cancel => {
                    Order::Cancel { by: row.cancelled_by.map(|by| by.0).unwrap_or_default() }
                }
                OrderKind::Answer => Order::Answer { ask_id: row.ask_id?, answer: row.answer? },
            };
            Some(Command { id: row.id, turn: TurnId(row.turn_id), order })
        });
        Ok(commands.collect())
    }

    /// Requests the stop of a worker; false if no such worker is alive.
    pub async fn ask_stop(&self, worker: WorkerId) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "update lastword.workers set is_stop_asked = true where id = $1 and state <> 'ended'",
            worker.0
        );
        let changed = self.execute("ask_stop", query).await?;
        self.wake().orders_left();
        Ok(changed == 1)
    }

    /// Workers of this replica with a stop request, 1000 at most.
    pub async fn stops(&self) -> Result<Vec<WorkerId>, StoreError> {
        let query = sqlx::query_scalar!(
            "select id from lastword.workers where replica_id = $1 and state <> 'ended' and is_stop_asked limit 1000",
            self.replica().0
        );
        let rows = self.fetch_all("stops", query).await?;
        Ok(rows.into_iter().map(WorkerId).collect())
    }
}
