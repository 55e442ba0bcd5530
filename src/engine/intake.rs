//! Intake: accepts the turns that were handed in, and takes those at once that this replica has room for.
//!
//! A turn that is taken here is claimed in the commit that accepts it: one statement fewer, and its worker
//! has it sooner. Refuses to reserve what it does not use: a slot that was offered for a turn that is
//! refused, or is another's, is free again. What cannot be committed in company goes by itself.

use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    config::Lever,
    store::{
        StoreError,
        accept::{ClaimOffer, NewTurn},
        accept_batch::Wanted,
    },
    worker::reserve::Reservation,
};

/// Turns in one commit.
const TAKEN_MAX: usize = 64;

/// Accepts until cancelled. Goes on through a drain: then it claims nothing.
pub async fn accept_on(engine: Engine, until: CancellationToken) {
    let taken_max = if engine.store.uses(Lever::AcceptedTogether) { TAKEN_MAX } else { 1 };
    let accepting = async {
        loop {
            let wanted = engine.store.accept_batch().take(taken_max).await;
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
        // One of them may be what Postgres does not take.
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

/// Refuses the turns whose conversation somebody else has locked; the others go on together. Where none is locked, a
/// table is: all are refused.
async fn without_locked(engine: &Engine, wanted: Vec<Wanted>, why: &StoreError) -> Option<Vec<Wanted>> {
    let conversations: Vec<_> = wanted.iter().map(|wanted| wanted.new.conversation).collect();
    let locked = engine.store.locked_conversations(&conversations).await.unwrap_or_default();
    let is_free = |wanted: &Wanted| !locked.is_empty() && !locked.contains(&wanted.new.conversation);
    let (free, refused): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_free);
    refuse(engine, refused, why).await;
    (!free.is_empty()).then_some(free)
}

/// Refuses turns, and tells whose lock keeps them out where one does.
async fn refuse(engine: &Engine, refused: Vec<Wanted>, why: &StoreError) {
    let conversations: Vec<_> = refused.iter().map(|wanted| wanted.new.conversation).collect();
    for one in refused {
        one.answer(Err(why.clone()));
    }
    if why.is_held() {
        engine.store.tell_who_keeps_out(conversations).await;
    }
}

/// A slot for the turn, where this replica may host it.
fn reserve(engine: &Engine, new: &NewTurn) -> Option<Reservation> {
    let is_taking = engine.can_start() && !engine.supervisor.soft().is_cancelled();
    let is_taking = is_taking && engine.store.uses(Lever::ClaimedWithAccept);
    let is_hosted = new.agent.unread.is_none() && engine.host.runtimes().contains(&new.agent.spec.runtime);
    (is_taking && is_hosted).then(|| engine.host.reserve(new)).flatten()
}
