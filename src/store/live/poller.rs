//! The poller: looks for all readers of this process at once whether their logs have gone on.
//!
//! Keeps I13. Rings are lost: Postgres delivers none, a writer dies between its commit and its ring, a
//! pooler swallows them. A reader that looked by itself once a second would be right as well, but
//! thousands of them kept Postgres from everything else in the moment in which a replica had died.
//! Keeps I4 with them: an event that has changed under a reader is news too. Who follows a conversation and has all of
//! it waits for the next turn, and is asked for its last event only after the beat's connection has broken.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{conversation_subscriptions::ConversationCursor, subscriptions::Cursor};
use crate::{
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store, upkeep::partitions::ends},
};

/// Between two looks while the doorbell is heard, and while it is not: then nothing else wakes a reader.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_UNHEARD: Duration = Duration::from_millis(500);
/// The longest between two while the doorbell is heard, where looking is much work.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(5);
/// Looking may take one part in so many of the time.
const REST: u32 = 10;
/// Readers in one statement; and of conversations, for each of which less is sent and read.
const LOOK_MAX: usize = 1000;
const THREADS_MAX: usize = 5000;

/// Looks until cancelled.
pub async fn look_on(store: Store, until: CancellationToken) {
    let looking = async {
        let mut pause = LOOK_EVERY_UNHEARD;
        loop {
            sleep(pause).await;
            let began = Instant::now();
            if let Err(why) = look(&store).await {
                tracing::debug!(%why, "nobody was looked for");
            }
            pause = match store.wake().rings.round_trip().is_some() {
                true => (began.elapsed() * REST).clamp(LOOK_EVERY, LOOK_EVERY_MAX),
                false => LOOK_EVERY_UNHEARD,
            };
        }
    };
    until.run_until_cancelled(looking).await;
}

/// One look for everybody who waits.
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
    /// Those turns of which a reader at its place has not the newest event, or another than the log has.
    pub(in crate::store) async fn with_news(
        &self,
        waiting: &[(TurnId, Cursor)],
    ) -> Result<Vec<TurnId>, StoreError> {
        let turns: Vec<Uuid> = waiting.iter().map(|(turn, _)| turn.0).collect();
        let (first, last) = ends(&turns);
        let seqs: Vec<i32> = waiting.iter().map(|(_, place)| place.seq).collect();
        let times: Vec<DateTime<Utc>> = waiting.iter().map(|(_, place)| place.anchor.at).collect();
        let attempts: Vec<i32> = waiting.iter().map(|(_, place)| place.anchor.attempt).collect();
        let kinds: Vec<String> =
            waiting.iter().map(|(_, place)| place.anchor.kind.as_str().to_owned()).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("look_out", |c| {
                sqlx::query_scalar!(
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
                    &kinds,
                    first,
                    last,
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(TurnId).collect())
    }

    /// Those conversations that have a turn after what a reader at its stand has, or that are gone.
    async fn that_grew(
        &self,
        waiting: &[(ConversationId, ConversationCursor)],
    ) -> Result<Vec<ConversationId>, StoreError> {
        let conversations: Vec<Uuid> = waiting.iter().map(|(conversation, _)| conversation.0).collect();
        let ordinals: Vec<i64> = waiting.iter().map(|(_, stand)| stand.after).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("look_out_for_turns", |c| {
                sqlx::query_scalar!(
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
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(ConversationId).collect())
    }
}
