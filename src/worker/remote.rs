//! Remote workers: a turn whose worker calls over HTTP, and the move of one from another replica.
//!
//! ```text
//! take_remote ─► serve ─► offer ─► (its worker takes it) ─► running ─► run: as with every other worker
//! adopt ───────► serve ─► resume: what the log tells ─────────────────┘
//! ```
//! Upper half of a turn's line; the lower half is at the rendezvous ([`crate::rendezvous`]), where a door brings
//! what the worker sends. A remote worker is nobody's child: there is nothing to kill. Its authority ends
//! with the line, which is all that it can write on (I11).

mod line;
mod offer;
mod past;

use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

pub(super) use self::{line::Remote, offer::hand_over, past::Past};
use super::{
    begin::{self, block},
    guards,
    host::Host,
    job::{Halt, Reach},
    line::Line,
    places::{Part, Permit},
    run, start,
};
use crate::{
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

/// Places for turns that are about to be claimed for remote workers.
#[derive(Debug)]
pub struct Places(OwnedSemaphorePermit);

impl Places {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.num_permits()
    }
}

/// A turn that was claimed for a remote worker, with what it is to be told.
#[derive(Debug)]
pub struct Call {
    /// The claim.
    pub claim: Claim,
    /// For whom.
    pub guard: OfferGuard,
    /// Opens the turn's route.
    pub token: String,
    /// Of its client token's share of the places.
    pub part: Part,
}

impl Host {
    /// Keeps places for so many turns, or as many as there are; `None` where there are none.
    pub fn remote_places(&self, most: usize) -> Option<Places> {
        let places = self.places();
        let taken = places.take(places.free().min(most)).map(Places);
        if taken.is_none() && places.want() {
            self.store().wake().queue.look();
        }
        taken
    }

    /// Takes a turn that was claimed for a remote worker. Given up meanwhile, it is not taken, and the claim
    /// is left to be given back.
    pub fn take_remote(&self, call: Call, places: &mut Places) -> bool {
        let Call { claim, guard, token, part } = call;
        let Some(place) = places.0.split(1) else { return false };
        let permit = Permit::new(place, part);
        let Some(reach) = self.run_list().admit(self, &claim, Some(permit)) else { return false };
        let remote = Remote::offering(self.rendezvous(), &claim, guard, token);
        let serving = serve(self.clone(), claim, reach, remote);
        self.supervisor().spawn(Kind::Turn, "turn", serving);
        true
    }

    /// Moves turns here, to which their workers want to say something at this replica's rendezvous, and tells whoever
    /// asked. No turn may be among them twice.
    pub async fn adopt(&self, requests: Vec<AdoptRequest>) {
        let (mut moves, mut asked) = (Vec::new(), Vec::new());
        for request in self.not_running(requests).await {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            if let Some(line) = self.rendezvous().line(turn, epoch).filter(|line| line.is_for(proof)) {
                request.answer(AdoptOutcome::Held(line));
            } else {
                // Before anything is known to be committed: should this fail half way, nobody may take the turn
                // for one that no worker has received (I10).
                self.run_list().note_had(turn, epoch);
                moves.push(Move { turn, epoch, proof });
                asked.push(request);
            }
        }
        if moves.is_empty() {
            return;
        }
        let adoptions = match self.store().adopt(&moves).await {
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
        let rendezvous = self.rendezvous();
        let runs = |request: &AdoptRequest| {
            let is_held =
                rendezvous.line(request.turn, request.epoch).is_some_and(|line| line.is_for(request.proof));
            !is_held && self.run_list().runs_at(request.turn, request.epoch)
        };
        let (running, others): (Vec<AdoptRequest>, Vec<AdoptRequest>) = requests.into_iter().partition(runs);
        if running.is_empty() {
            return others;
        }
        let asked: Vec<_> =
            running.iter().map(|request| (request.turn, request.epoch, request.proof)).collect();
        let offered = self.store().offered(&asked).await;
        for request in running {
            let AdoptRequest { turn, epoch, proof, .. } = request;
            request.answer(match &offered {
                // Not every turn is a remote worker's: one that runs in a process here is nobody's to move.
                Ok(offered) if !offered.contains(&(turn, epoch, proof)) => AdoptOutcome::Unknown,
                Ok(_) => {
                    // What is left of an earlier hold has yet to notice. The worker comes again.
                    self.halt_as(turn, epoch, Halt::Moved);
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
        let beginnings = match self.store().read_beginnings(&turns).await {
            Ok(beginnings) => beginnings,
            Err(why) => {
                owed.into_iter().for_each(|request| request.answer(AdoptOutcome::Failed(why.clone())));
                return;
            }
        };
        let each = adopted.into_iter().zip(owed).zip(beginnings);
        let resuming = each.map(|((adopted, request), beginning)| async move {
            let past = match beginning {
                Ok(beginning) => Past::read(self.store(), &adopted, beginning).await,
                Err(why) => Err(why),
            };
            request.answer(match past {
                Ok(past) => self.resume(adopted, past),
                Err(why) => AdoptOutcome::Failed(why),
            });
        });
        stream::iter(resuming).buffer_unordered(LOGS_MAX).collect::<()>().await;
    }

    fn resume(&self, adopted: Adopted, past: Past) -> AdoptOutcome {
        let Some(reach) = self.run_list().admit(self, &adopted.claim, None) else {
            return AdoptOutcome::Stale;
        };
        tracing::info!(turn_id = %adopted.claim.turn, epoch = adopted.claim.epoch, "a remote turn is held here now");
        let remote = Remote::resuming(self.rendezvous(), &adopted, &past);
        let outcome = AdoptOutcome::Held(remote.line().clone());
        let is_running = adopted.is_running;
        let (host, claim) = (self.clone(), adopted.claim);
        self.supervisor().spawn(Kind::Turn, "turn", async move {
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
            self.halt_as(turn, epoch, Halt::Moved);
        }
    }
}

/// Serves a claimed turn from its offer to its last word.
async fn serve(host: Host, claim: Claim, reach: Reach, mut remote: Remote) {
    debug_assert_eq!(claim.phase, Phase::Starting);
    let Some(mut job) = begin::job(&host, claim, reach, true).await else { return };
    let span = job.span.clone();
    async {
        match guards::stopped_by(&host, &mut job).await {
            Err(obstacle) => start::tell(&host, &job, obstacle, None).await,
            Ok(Some(notice)) => block(&host, job, notice).await,
            Ok(None) => {
                run::run(&host, Line::Remote(&mut remote), &mut job).await;
                // Its line is gone before its place is free.
                drop(remote);
            }
        }
    }
    .instrument(span)
    .await;
}

/// Goes on with a turn that ran elsewhere.
async fn go_on(host: Host, claim: Claim, reach: Reach, mut remote: Remote, past: Past) {
    let Some(mut job) = begin::job(&host, claim, reach, false).await else { return };
    let span = job.span.clone();
    async {
        run::resume(&host, Line::Remote(&mut remote), &mut job, past).await;
        drop(remote);
    }
    .instrument(span)
    .await;
}
