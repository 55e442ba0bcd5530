//! Claims skip turns whose row or conversation another session has locked.
//!
//! A claim takes many turns in one statement and waits for each row, so one locked row would delay all of them. Locked
//! rows are looked for after a claim has timed out, then once a second until none is locked. Other claims cost nothing
//! more.

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        live::{queue_hints::FRONT, ring::first},
        warn_of,
    },
};

impl Store {
    /// The first turn that claims skip, and when to look again.
    pub fn first_passed_over(&self) -> Option<(TurnId, Instant)> {
        self.locked_turns().first()
    }

    /// The conversations that claims skip now. Looks again if a look is due.
    pub(in crate::store) async fn passed_over(&self) -> Vec<Uuid> {
        let due = self.first_passed_over().filter(|(_, at)| *at <= Instant::now());
        if let Some((from, _)) = due {
            self.look_for_locked(from).await;
        }
        self.locked_turns().conversations()
    }

    /// Passes on the result of a claim from this turn on. If the claim timed out on a lock, looks for the locked turns,
    /// so that the next claim skips them.
    pub(in crate::store) async fn note_if_locked<T>(
        &self,
        claimed: Result<T, StoreError>,
        from: TurnId,
    ) -> Result<T, StoreError> {
        if claimed.as_ref().is_err_and(StoreError::is_held) {
            let from = first(self.first_passed_over().map(|(turn, _)| turn), Some(from));
            self.look_for_locked(from.unwrap_or(FRONT)).await;
        }
        claimed
    }

    /// Looks at the queue from this turn on. If Postgres does not answer, nothing is skipped.
    async fn look_for_locked(&self, from: TurnId) {
        let heads = self.locked_heads(from).await.unwrap_or_else(|why| {
            warn_of!(why, "locked turns could not be looked up");
            Vec::new()
        });
        self.locked_turns().saw(&heads);
        self.tell_who_locked(heads.into_iter().map(|(turn, _)| TurnId(turn))).await;
    }

    /// Queued turns, with their conversations, of which another session has locked either. Waits for none.
    async fn locked_heads(&self, from: TurnId) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
        let query = sqlx::query!(
            r#"
            with head as materialized (
              select i.turn_id, i.conversation_id from lastword.inflight i
               where i.phase = 'queued' and i.turn_id >= $1
               order by i.turn_id limit 4096),
            v as materialized (
              select c.id from lastword.conversations c
               where c.id = any (array (select conversation_id from head))
               order by c.id for no key update skip locked),
            t as materialized (
              select t.id from lastword.turns t
               where t.id = any (array (select turn_id from head))
               order by t.id for no key update skip locked)
            select turn_id, conversation_id from head
             where conversation_id not in (select id from v) or turn_id not in (select id from t)
             order by turn_id
            "#,
            from.0,
        );
        let rows = self.fetch_all("locked_heads", query).await?;
        Ok(rows.into_iter().map(|row| (row.turn_id, row.conversation_id)).collect())
    }
}
