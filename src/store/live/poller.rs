//! The poller: one query checks the logs of all waiting readers of this process.
//!
//! Keeps I13: a ring can be lost, when Postgres drops it, a writer dies between commit and ring, or a pooler swallows
//! it. Readers do not poll by themselves: thousands of queries at once kept Postgres busy just when a replica had died.
//! Keeps I4: an event that has changed under its reader (failover) is reported too. A subscriber that is up to date
//! with its conversation waits for the next turn; its last event is checked only after the beat's connection has
//! broken.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{conversation_subscriptions::ConversationCursor, subscriptions::Cursor};
use crate::{
    event::Kind,
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store, records::word::Stored, upkeep::partitions::ends},
};

/// Poll interval with a working doorbell, and without one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_UNHEARD: Duration = Duration::from_millis(500);
/// The longest poll interval with a working doorbell, when a poll takes long.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(5);
/// Polling may take 1/10 of the time.
const REST: u32 = 10;
/// Readers checked by one statement; conversations, which need fewer parameters and reads, are checked 5000 at a time.
const LOOK_MAX: usize = 1000;
const THREADS_MAX: usize = 5000;

/// Polls until cancelled.
pub async fn look_on(store: Store, until: CancellationToken) {
    let looking = async {
        let mut pause = LOOK_EVERY_UNHEARD;
        loop {
            sleep(pause).await;
            let began = Instant::now();
            if let Err(why) = look(&store).await {
                tracing::debug!(%why, "the fallback poll failed");
            }
            pause = match store.wake().rings.round_trip().is_some() {
                true => (began.elapsed() * REST).clamp(LOOK_EVERY, LOOK_EVERY_MAX),
                false => LOOK_EVERY_UNHEARD,
            };
        }
    };
    until.run_until_cancelled(looking).await;
}

/// One poll for all waiting readers.
async fn look(store: &Store) -> Result<(), StoreError> {
    let waiting = store.wake().turns.waiting();
    for some in waiting.chunks(LOOK_MAX) {
        store.with_news(some).await?.into_iter().for_each(|turn| store.wake().turns.call(turn));
    }
    let (breaks, waiting) = (store.breaks(), store.wake().conversations.waiting());
    for some in waiting.chunks(THREADS_MAX) {
        store.that_grew(some).await?.into_iter().for_each(|grown| store.wake().conversations.call(grown));
    }
    let doubtful: Vec<_> = waiting.into_iter().filter(|(_, stand)| stand.breaks != breaks).collect();
    for some in doubtful.chunks(LOOK_MAX) {
        let places: Vec<_> = some.iter().filter_map(|(_, stand)| stand.told).collect();
        let changed: HashSet<TurnId> = store.with_news(&places).await?.into_iter().collect();
        for (conversation, stand) in some {
            match stand.told {
                Some((turn, _)) if changed.contains(&turn) => store.wake().conversations.call(*conversation),
                _ => store.wake().conversations.compared(*conversation, *stand, breaks),
            }
        }
    }
    Ok(())
}

impl Store {
    /// Turns whose log has an event after the reader's cursor, or another event at the cursor.
    pub(in crate::store) async fn with_news(
        &self,
        waiting: &[(TurnId, Cursor)],
    ) -> Result<Vec<TurnId>, StoreError> {
        let turns: Vec<Uuid> = waiting.iter().map(|(turn, _)| turn.0).collect();
        let (first, last) = ends(&turns);
        let seqs: Vec<i32> = waiting.iter().map(|(_, place)| place.seq).collect();
        let times: Vec<DateTime<Utc>> = waiting.iter().map(|(_, place)| place.anchor.at).collect();
        let attempts: Vec<i32> = waiting.iter().map(|(_, place)| place.anchor.attempt).collect();
        let kinds: Vec<_> = waiting.iter().map(|(_, place)| Stored(place.anchor.kind)).collect();
        let query = sqlx::query_scalar!(
            r#"
            select w.turn_id as "turn!"
              from unnest($1::uuid[], $2::int[], $3::timestamptz[], $4::int[], $5::text[])
                w (turn_id, seq, at, attempt, kind)
             cross join lateral (
               select count(*) filter (where e.seq = w.seq and e.at = w.at
                        and e.attempt = w.attempt and e.kind = w.kind) as same,
                      count(*) as all
                 from lastword.turn_events e
                where e.turn_id = w.turn_id and e.seq between w.seq and w.seq + 1
                  and e.turn_id between $6 and $7) e
             where e.same <> 1 or e.all <> 1
            "#,
            &turns,
            &seqs,
            &times,
            &attempts,
            &kinds as &[Stored<Kind>],
            first,
            last,
        );
        let rows = self.fetch_all("look_out", query).await?;
        Ok(rows.into_iter().map(TurnId).collect())
    }

    /// Conversations that have a turn after the subscriber's cursor, or that are deleted.
    async fn that_grew(
        &self,
        waiting: &[(ConversationId, ConversationCursor)],
    ) -> Result<Vec<ConversationId>, StoreError> {
        let conversations: Vec<Uuid> = waiting.iter().map(|(conversation, _)| conversation.0).collect();
        let ordinals: Vec<i64> = waiting.iter().map(|(_, stand)| stand.after).collect();
        let query = sqlx::query_scalar!(
            r#"
            select w.conversation_id as "conversation!"
              from unnest($1::uuid[], $2::bigint[]) w (conversation_id, ordinal)
              left join lateral (
               select true as is_there from lastword.turns t
                where t.conversation_id = w.conversation_id and t.ordinal > w.ordinal
                order by t.ordinal limit 1) t on true
              left join lateral (
               select true as is_there from lastword.conversations c
                where c.id = w.conversation_id and c.deleted_at is null limit 1) c on true
             where t.is_there or c.is_there is null
            "#,
            &conversations,
            &ordinals,
        );
        let rows = self.fetch_all("look_out_for_turns", query).await?;
        Ok(rows.into_iter().map(ConversationId).collect())
    }
}
