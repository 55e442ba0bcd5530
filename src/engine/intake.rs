//! Intake: commits accepted turns in batches, and claims those that this replica has capacity for.
//!
//! A turn that is taken here is claimed in the commit that accepts it, which saves a statement and time. A slot
//! reserved for a turn that is refused, or claimed elsewhere, is freed at once. A turn that makes a batch fail is
//! committed alone.

use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    store::{
        StoreError,
        accept::{ClaimOffer, NewTurn},
        accept_batch::Wanted,
    },
    worker::reserve::Reservation,
};

/// Turns in one commit.
const TAKEN_MAX: usize = 64;

/// Accepts turns until cancelled. Goes on through a drain, without claiming.
pub async fn accept_on(engine: Engine, until: CancellationToken) {
    let accepting = async {
        loop {
            let wanted = engine.store.accept_batch().take(TAKEN_MAX).await;
            accept(&engine, wanted).await;
        }
    };
    until.run_until_cancelled(accepting).await;
    engine.store.accept_batch().close().await;
}

async fn accept(engine: &Engine, wanted: Vec<Wanted>) {
    let reserved: Vec<Option<Reservation>> =
        wanted.iter().map(|wanted| reserve(engine, &wanted.new)).collect();
    let asked: Vec<(&NewTurn, Option<ClaimOffer>)> = wanted
        .iter()
        .zip(&reserved)
        .map(|(wanted, room)| (&wanted.new, room.as_ref().map(Reservation::offer)))
        .collect();
    match engine.store.accept_all(&asked).await {
        Ok(verdicts) => {
            for ((wanted, room), verdict) in wanted.into_iter().zip(reserved).zip(verdicts) {
                if let Ok(accepted) = &verdict {
                    engine.host.take_in(accepted, wanted.new.agent.clone(), room);
                }
                wanted.answer(verdict);
            }
        }
        // One turn of the batch may hold something Postgres refuses, so each is tried alone.
        Err(why) if !why.is_away() && wanted.len() > 1 => {
            drop(reserved);
            for one in wanted {
                Box::pin(accept(engine, vec![one])).await;
            }
        }
        Err(why) if why.is_held() && wanted.len() > 1 => {
            drop(reserved);
            if let Some(wanted) = without_locked(engine, wanted, &why).await {
                Box::pin(accept(engine, wanted)).await;
            }
        }
        Err(why) => {
            drop(reserved);
            refuse(engine, wanted, &why).await;
        }
    }
    engine.host.look_if_wanted();
}

/// Refuses the turns whose conversation another session has locked, and returns the others. If no conversation is
/// locked a table is, and all are refused.
async fn without_locked(engine: &Engine, wanted: Vec<Wanted>, why: &StoreError) -> Option<Vec<Wanted>> {
    let conversations: Vec<_> = wanted.iter().map(|wanted| wanted.new.conversation).collect();
    let locked = engine.store.locked_conversations(&conversations).await.unwrap_or_default();
    let is_free = |wanted: &Wanted| !locked.is_empty() && !locked.contains(&wanted.new.conversation);
    let (free, refused): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_free);
    refuse(engine, refused, why).await;
    (!free.is_empty()).then_some(free)
}

/// Refuses turns, and logs the session whose lock blocks them, if one does.
async fn refuse(engine: &Engine, refused: Vec<Wanted>, why: &StoreError) {
    let conversations: Vec<_> = refused.iter().map(|wanted| wanted.new.conversation).collect();
    for one in refused {
        one.answer(Err(why.clone()));
    }
    if why.is_held() {
        engine.store.tell_who_keeps_out(conversations).await;
    }
}

/// Reserves capacity for the turn, if this replica may claim and host it.
fn reserve(engine: &Engine, new: &NewTurn) -> Option<Reservation> {
    let is_taking = engine.can_start() && !engine.supervisor.soft().is_cancelled();
    let is_hosted = new.agent.unread.is_none() && engine.host.runtimes().contains(&new.agent.spec.runtime);
    (is_taking && is_hosted).then(|| engine.host.reserve(new)).flatten()
}
