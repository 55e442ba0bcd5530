//! Remote workers: a turn whose worker calls over HTTP, and the move of one from another replica.
//!
//! ```text
//! take_remote ─► serve ─► offer ─► (its worker takes it) ─► running ─► run: as with every other worker
//! adopt ───────► serve ─► resume: what the log tells ─────────────────┘
//! ```
//! Upper half of a turn's line; the lower half is at the rendezvous ([`crate::rendezvous`]), where a door brings
//! what the worker sends. A remote worker is nobody's child: there is nothing to kill. Its authority ends
//! with the line, which is all that it can write on (I11).

mod link;
mod offer;

use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use self::{link::RemoteLink, offer::hand_over};
use super::{
    host::Host,
    registry::{Reach, SlotShare, TurnSlot},
    route::checked,
    turn::{Replay, prepare, resume},
};
use crate::{
    host::Halt,
    id::TurnId,
    rendezvous::{AdoptOutcome, AdoptRequest, OfferGuard},
    store::{
        adoption::{Adopted, Adoption, Move},
        claim::{Claim, Phase},
    },
    task::Kind,
    token::{self, Purpose, TokenHash},
};

/// Logs that are read at a time, of those that are too long to be read with others.
const LOGS_MAX: usize = 4;

/// Slots for turns that are about to be claimed for remote workers.
#[derive(Debug)]
pub struct RemoteCapacity(OwnedSemaphorePermit);

impl RemoteCapacity {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.num_permits()
    }
}

/// A turn that was claimed for a remote worker, with what it is to be told.
#[derive(Debug)]
pub struct RemoteClaim {
    /// The claim.
    pub claim: Claim,
    /// For whom.
    pub guard: OfferGuard,
    /// Opens the turn's route.
    pub token: String,
    /// Of its client token's share of the slots.
    pub share: SlotShare,
}

impl Host {
    /// Keeps slots for this many turns, or as many as there are; `None` where there are none.
    pub fn remote_capacity(&self, most: usize) -> Option<RemoteCapacity> {
        let slots = self.deps().slots();
        let taken = slots.take(slots.free().min(most)).map(RemoteCapacity);
        if taken.is_none() && slots.want() {
            self.deps().store().wake().queue.look();
        }
        taken
    }

    /// Takes a turn that was claimed for a remote worker. Released meanwhile, it is not taken, and the claim
    /// is left to be given back.
    pub fn take_remote(&self, call: RemoteClaim, capacity: &mut RemoteCapacity) -> bool {
        let RemoteClaim { claim, guard, token, share } = call;
        let Some(permit) = capacity.0.split(1) else { return false };
        let slot = Some(TurnSlot::new(permit, share));
        let Some(reach) = self.deps().running().admit(&claim, slot) else { return false };
        let remote = RemoteLink::offering(self.deps().rendezvous(), &claim, guard, token);
        let serving = serve(self.clone(), claim, reach, remote);
        self.deps().supervisor().spawn(Kind::Turn, "turn", serving);
        true
    }

    /// Moves turns here, to which their workers want to say something at this replica's rendezvous, and tells whoever
    /// asked. No turn may be among them twice.
    pub async fn adopt(&self, requests: Vec<AdoptRequest>) {
        let (mut moves, mut asked) = (Vec::new(), Vec::new());
        for request in self.not_running(requests).await {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            if let Some(line) = self.deps().rendezvous().line(turn, epoch).filter(|line| line.is_for(proof)) {
                request.answer(AdoptOutcome::Held(line));
            } else {
                // Before anything is known to be committed: should this fail half way, nobody may take the turn
                // for one that no worker has received (I10).
                self.deps().running().note_delivered(turn, epoch);
                moves.push(Move { turn, epoch, proof });
                asked.push(request);
            }
        }
        if moves.is_empty() {
            return;
        }
        let adoptions = match self.deps().store().adopt(&moves).await {
            Ok(adoptions) => adoptions,
            Err(why) => {
                asked.into_iter().for_each(|request| request.answer(AdoptOutcome::Failed(why.clone())));
                return;
            }
        };
        let (mut adopted, mut owed) = (Vec::new(), Vec::new());
        for (request, adoption) in asked.into_iter().zip(adoptions) {
            match adoption {
                Ok(Adoption::Adopted(it)) => {
                    adopted.push(*it);
                    owed.push(request);
                }
                Ok(Adoption::Unknown) => request.answer(AdoptOutcome::Unknown),
                Ok(Adoption::Ended) => request.answer(AdoptOutcome::Ended),
                Ok(Adoption::Stale) => request.answer(AdoptOutcome::Stale),
                Ok(Adoption::Elsewhere) => request.answer(AdoptOutcome::Elsewhere),
                Err(why) => request.answer(AdoptOutcome::Failed(why)),
            }
        }
        self.resume_all(adopted, owed).await;
    }

    /// Those of these requests whose turns do not run here already.
    async fn not_running(&self, requests: Vec<AdoptRequest>) -> Vec<AdoptRequest> {
        let rendezvous = self.deps().rendezvous();
        let runs = |request: &AdoptRequest| {
            let is_held =
                rendezvous.line(request.turn, request.epoch).is_some_and(|line| line.is_for(request.proof));
            !is_held && self.deps().running().runs_at(request.turn, request.epoch)
        };
        let (running, others): (Vec<AdoptRequest>, Vec<AdoptRequest>) = requests.into_iter().partition(runs);
        if running.is_empty() {
            return others;
        }
        let asked: Vec<_> =
            running.iter().map(|request| (request.turn, request.epoch, request.proof)).collect();
        let offered = self.deps().store().offered(&asked).await;
        for request in running {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            request.answer(match &offered {
                // Not every turn is a remote worker's: one that runs in a process here is nobody's to move.
                Ok(offered) if !offered.contains(&(turn, epoch, proof)) => AdoptOutcome::Unknown,
                Ok(_) => {
                    // What is left of an earlier hold has yet to notice. The worker comes again.
                    self.deps().running().halt(turn, epoch, Halt::Moved);
                    AdoptOutcome::Elsewhere
                }
                Err(why) => AdoptOutcome::Failed(why.clone()),
            });
        }
        others
    }

    /// Goes on with turns that are held here now, each as soon as its log is read.
    async fn resume_all(&self, adopted: Vec<Adopted>, owed: Vec<AdoptRequest>) {
        let turns: Vec<TurnId> = adopted.iter().map(|adopted| adopted.claim.turn).collect();
        let beginnings = match self.deps().store().read_beginnings(&turns).await {
            Ok(beginnings) => beginnings,
            Err(why) => {
                owed.into_iter().for_each(|request| request.answer(AdoptOutcome::Failed(why.clone())));
                return;
            }
        };
        let each = adopted.into_iter().zip(owed).zip(beginnings);
        let resuming = each.map(|((adopted, request), beginning)| async move {
            let past = match beginning {
                Ok(beginning) => Replay::read(self.deps().store(), &adopted, beginning).await,
                Err(why) => Err(why),
            };
            request.answer(match past {
                Ok(past) => self.resume(adopted, past),
                Err(why) => AdoptOutcome::Failed(why),
            });
        });
        stream::iter(resuming).buffer_unordered(LOGS_MAX).collect::<()>().await;
    }

    fn resume(&self, adopted: Adopted, past: Replay) -> AdoptOutcome {
        let Some(reach) = self.deps().running().admit(&adopted.claim, None) else {
            return AdoptOutcome::Stale;
        };
        tracing::info!(turn_id = %adopted.claim.turn, epoch = adopted.claim.epoch, "a remote turn is held here now");
        let remote = RemoteLink::resuming(self.deps().rendezvous(), &adopted, &past);
        let outcome = AdoptOutcome::Held(remote.line().clone());
        let is_running = adopted.is_running;
        let (host, claim) = (self.clone(), adopted.claim);
        self.deps().supervisor().spawn(Kind::Turn, "turn", async move {
            if is_running {
                go_on(host, claim, reach, remote, past).await;
            } else {
                serve(host, claim, reach, remote).await;
            }
        });
        outcome
    }

    /// The hash of a turn's token, and the token.
    pub fn mint_turn_token() -> (String, TokenHash) {
        let token = token::mint(Purpose::Turn);
        let hash = token::hash(&token);
        (token, hash)
    }

    /// Ends runs that go on elsewhere.
    pub fn let_go(&self, strayed: &[(TurnId, i32)]) {
        for &(turn, epoch) in strayed {
            self.deps().running().halt(turn, epoch, Halt::Moved);
        }
    }
}

/// Serves a claimed turn from its offer to its last word.
async fn serve(host: Host, claim: Claim, reach: Reach, mut remote: RemoteLink) {
    debug_assert_eq!(claim.phase, Phase::Starting);
    let Some(job) = prepare(host.deps(), claim, reach, true).await else { return };
    let span = job.span.clone();
    async {
        let Some(mut job) = checked(&host, job).await else { return };
        if let Some(base) = hand_over(host.deps(), &mut remote, &mut job).await {
            let past = Replay::started(host.deps(), &job, base);
            resume(host.deps(), &mut remote, &mut job, past).await;
        }
        // Its line is gone before its slot is free.
        drop(remote);
    }
    .instrument(span)
    .await;
}

/// Goes on with a turn that ran elsewhere.
async fn go_on(host: Host, claim: Claim, reach: Reach, mut remote: RemoteLink, past: Replay) {
    let Some(mut job) = prepare(host.deps(), claim, reach, false).await else { return };
    let span = job.span.clone();
    async {
        resume(host.deps(), &mut remote, &mut job, past).await;
        drop(remote);
    }
    .instrument(span)
    .await;
}
