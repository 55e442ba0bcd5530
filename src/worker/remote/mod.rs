//! Remote workers: turns whose worker calls over HTTP, and the move of a turn from another replica.
//!
//! ```text
//! take_remote ─► serve ─► offer ─► (its worker takes it) ─► running ─► run: as with every other worker
//! adopt ───────► serve ─► resume: the state from the log ──────────────┘
//! ```
//!
//! This is the engine's end of a turn's line. The other end is at the rendezvous ([`crate::rendezvous`]), where
//! the HTTP handlers deliver the worker's messages. A remote worker is no child process and cannot be killed: the
//! worker's authority ends with the line, its only way to write (I11).

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
    task::TaskKind,
    token::{self, Purpose, TokenHash},
};

/// Logs read at a time, of those too long for the common first read.
const LOGS_MAX: usize = 4;

/// Slots reserved for turns that are about to be claimed for remote workers.
#[derive(Debug)]
pub struct RemoteCapacity(OwnedSemaphorePermit);

impl RemoteCapacity {
    /// The number of slots.
    pub fn count(&self) -> usize {
        self.0.num_permits()
    }
}

/// A turn that was claimed for a remote worker, ready to be offered.
#[derive(Debug)]
pub struct RemoteClaim {
    /// The claim.
    pub claim: Claim,
    /// The worker to offer the turn to.
    pub guard: OfferGuard,
    /// Authorises the worker's calls for this turn.
    pub token: String,
    /// The turn's place in its client token's share of the slots.
    pub share: SlotShare,
}

impl Host {
    /// Reserves at most `most` slots; `None` if none is free. The queue is polled again when one is.
    pub fn remote_capacity(&self, most: usize) -> Option<RemoteCapacity> {
        let slots = &self.deps().slots;
        let taken = slots.take(slots.free().min(most)).map(RemoteCapacity);
        if taken.is_none() && slots.want() {
            self.deps().store.wake().queue.look();
        }
        taken
    }

    /// Takes a turn that was claimed for a remote worker. Returns false if the claim was released meanwhile;
    /// `settle` then gives it back.
    pub fn take_remote(&self, call: RemoteClaim, capacity: &mut RemoteCapacity) -> bool {
        let RemoteClaim { claim, guard, token, share } = call;
        let Some(permit) = capacity.0.split(1) else { return false };
        let slot = Some(TurnSlot::new(permit, share));
        let Some(reach) = self.deps().running.admit(&claim, slot) else { return false };
        let remote = RemoteLink::offering(&self.deps().rendezvous, &claim, guard, token);
        let serving = serve(self.clone(), claim, reach, remote);
        self.deps().supervisor.spawn(TaskKind::Turn, "turn", serving);
        true
    }

    /// Moves turns to this replica because their workers call here now, and answers each request. Each turn may be
    /// in the list once only.
    pub async fn adopt(&self, requests: Vec<AdoptRequest>) {
        let (mut moves, mut asked) = (Vec::new(), Vec::new());
        for request in self.not_running(requests).await {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            if let Some(line) = self.deps().rendezvous.line(turn, epoch).filter(|line| line.is_for(proof)) {
                request.answer(AdoptOutcome::Held(line));
            } else {
                // Noted before the commit is known: if the move fails half way, the turn must not pass for one
                // that no worker has received (I10).
                self.deps().running.note_delivered(turn, epoch);
                moves.push(Move { turn, epoch, proof });
                asked.push(request);
            }
        }
        if moves.is_empty() {
            return;
        }
        let adoptions = match self.deps().store.adopt(&moves).await {
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

    /// Answers requests whose turns already run here and returns the others.
    async fn not_running(&self, requests: Vec<AdoptRequest>) -> Vec<AdoptRequest> {
        let rendezvous = &self.deps().rendezvous;
        let runs = |request: &AdoptRequest| {
            let is_held =
                rendezvous.line(request.turn, request.epoch).is_some_and(|line| line.is_for(request.proof));
            !is_held && self.deps().running.runs_at(request.turn, request.epoch)
        };
        let (running, others): (Vec<AdoptRequest>, Vec<AdoptRequest>) = requests.into_iter().partition(runs);
        if running.is_empty() {
            return others;
        }
        let asked: Vec<_> =
            running.iter().map(|request| (request.turn, request.epoch, request.proof)).collect();
        let offered = self.deps().store.offered(&asked).await;
        for request in running {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            request.answer(match &offered {
                // Turns of other runtimes run here too; those cannot be moved.
                Ok(offered) if !offered.contains(&(turn, epoch, proof)) => AdoptOutcome::Unknown,
                Ok(_) => {
                    // A former hold of the same turn has not ended yet. The worker retries.
                    self.deps().running.halt(turn, epoch, Halt::Moved);
                    AdoptOutcome::Elsewhere
                }
                Err(why) => AdoptOutcome::Failed(why.clone()),
            });
        }
        others
    }

    /// Resumes turns that are now held here, each as soon as its log is read.
    async fn resume_all(&self, adopted: Vec<Adopted>, owed: Vec<AdoptRequest>) {
        let turns: Vec<TurnId> = adopted.iter().map(|adopted| adopted.claim.turn).collect();
        let beginnings = match self.deps().store.read_beginnings(&turns).await {
            Ok(beginnings) => beginnings,
            Err(why) => {
                owed.into_iter().for_each(|request| request.answer(AdoptOutcome::Failed(why.clone())));
                return;
            }
        };
        let each = adopted.into_iter().zip(owed).zip(beginnings);
        let resuming = each.map(|((adopted, request), beginning)| async move {
            let past = match beginning {
                Ok(beginning) => Replay::read(&self.deps().store, &adopted, beginning).await,
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
        let Some(reach) = self.deps().running.admit(&adopted.claim, None) else {
            return AdoptOutcome::Stale;
        };
        tracing::info!(
            turn_id = %adopted.claim.turn, epoch = adopted.claim.epoch,
            "this replica has adopted a remote turn"
        );
        let remote = RemoteLink::resuming(&self.deps().rendezvous, &adopted, &past);
        let outcome = AdoptOutcome::Held(remote.line().clone());
        let is_running = adopted.is_running;
        let (host, claim) = (self.clone(), adopted.claim);
        self.deps().supervisor.spawn(TaskKind::Turn, "turn", async move {
            if is_running {
                go_on(host, claim, reach, remote, past).await;
            } else {
                serve(host, claim, reach, remote).await;
            }
        });
        outcome
    }

    /// A new turn token and its hash.
    pub fn mint_turn_token() -> (String, TokenHash) {
        let token = token::mint(Purpose::Turn);
        let hash = token::hash(&token);
        (token, hash)
    }

    /// Ends the runs of turns that moved to another replica.
    pub fn let_go(&self, strayed: &[(TurnId, i32)]) {
        for &(turn, epoch) in strayed {
            self.deps().running.halt(turn, epoch, Halt::Moved);
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
        // The line must be closed before the slot is free.
        drop(remote);
    }
    .instrument(span)
    .await;
}

/// Resumes a turn that ran on another replica.
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
