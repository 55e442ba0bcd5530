//! Turns that claims pass over, since somebody else has locked their row or their conversation.
//!
//! A claim takes many turns in one statement and waits for each row, so one locked row would hold up all of them. Locked
//! rows are looked for after a claim has waited in vain, then once a second until none is locked: a claim without such a
//! neighbour costs nothing more.

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
    /// The first turn that claims pass over, and when to look at it again.
    pub fn first_passed_over(&self) -> Option<(TurnId, Instant)> {
        self.locked_turns().first()
    }

    /// The conversations whose turns no claim takes now.
    pub(in crate::store) async fn passed_over(&self) -> Vec<Uuid> {
        let due = self.first_passed_over().filter(|(_, at)| *at <= Instant::now());
        if let Some((from, _)) = due {
            self.look_for_locked(from).await;
        }
        self.locked_turns().conversations()
    }

    /// Gives back what a claim from this turn on brought. Where the claim waited in vain, the next one passes over what is
    /// locked.
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

    /// Looks at the queue from this turn on. Where Postgres does not answer, nothing is passed over.
    async fn look_for_locked(&self, from: TurnId) {
        let heads = self.locked_heads(from).await.unwrap_or_else(|why| {
            warn_of!(why, "locked turns not looked for");
            Vec::new()
        });
        self.locked_turns().saw(&heads);
        self.tell_who_locked(heads.into_iter().map(|(turn, _)| TurnId(turn))).await;
    }

    /// Queued turns, and their conversations, of which somebody else has locked one or the other. Waits for none.
    async fn locked_heads(&self, from: TurnId) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
        let mut lease = self.lease().await?;
        let rows = lease
            .run("locked_heads", |c| {
                sqlx::query!(
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
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.turn_id, row.conversation_id)).collect())
    }
}
