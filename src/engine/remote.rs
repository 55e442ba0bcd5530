//! Remote workers: claims turns for them, moves turns to the replica their worker calls, and dismisses silent
//! workers.
//!
//! Works through the rendezvous ([`crate::rendezvous`]), where the HTTP handlers leave what workers send. Dispatch
//! calls [`claim`] when it searches the queue, and [`look_after`] when it reads commands.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    id::{ConversationId, TurnId, WorkerId},
    rendezvous::{AdoptRequest, TICK, WorkerSession},
    store::{
        StoreError,
        queue_hints::END,
        remote_turns::{Bid, Head},
        warn_of,
    },
    worker::{host::Host, remote::RemoteClaim},
};

/// Claims in one statement.
const CLAIMS_MAX: usize = 64;
/// Moves in one statement: the death of a replica moves all its turns.
const MOVES_MAX: usize = 64;
/// Move statements in flight; the logs of one batch are read while Postgres moves the next.
const MOVING_MAX: usize = 4;
/// Head start of the worker that served a conversation last.
const HEAD_START_MS: i64 = 50;

/// Which turn goes to which worker.
type Match = (TurnId, Arc<WorkerSession>);

/// The workers a search is for.
#[derive(Debug)]
pub(super) enum WorkersSought {
    /// Every worker that waits.
    All,
    /// Workers bound to these conversations, whose turns are reserved for them.
    Kept(HashSet<ConversationId>),
}

impl WorkersSought {
    fn is_for(&self, session: &WorkerSession) -> bool {
        match self {
            WorkersSought::All => true,
            WorkersSought::Kept(kept) => {
                session.worker.conversation.is_some_and(|bound| kept.contains(&bound))
            }
        }
    }
}

/// Claims turns for waiting workers. Returns whether a turn was left to the worker that served its conversation
/// last. Searches from the front of the queue each time, since the waiting workers belong to other agents each
/// time; workers bound to a conversation need no search.
pub(super) async fn claim(engine: &Engine, reach: &WorkersSought) -> Result<bool, StoreError> {
    let rendezvous = &engine.rendezvous;
    let is_waiting = |session: &Arc<WorkerSession>| reach.is_for(session) && session.room() > 0;
    let waiting: Vec<Arc<WorkerSession>> = rendezvous.sessions().into_iter().filter(is_waiting).collect();
    if waiting.is_empty() || !rendezvous.takes_turns() {
        return Ok(false);
    }
    let bound: Vec<ConversationId> =
        waiting.iter().filter_map(|session| session.worker.conversation).collect();
    let unbound = waiting.iter().filter(|session| session.worker.conversation.is_none());
    let mut agents: Vec<String> = unbound.map(|session| session.worker.agent.clone()).collect();
    agents.sort();
    agents.dedup();
    let from = if agents.is_empty() { END } else { engine.store.wake().queue.front() };
    let heads = engine.store.remote_heads(&agents, &bound, from, &engine.host.barred()).await?;
    let is_left = heads.iter().any(|head| !head.has_waited());
    let matches = matches(&heads, &waiting);
    if matches.is_empty() {
        return Ok(is_left);
    }
    let Some(mut capacity) = engine.host.remote_capacity(matches.len().min(CLAIMS_MAX)) else {
        return Ok(is_left);
    };
    let are_more = capacity.count() < matches.len();
    let mut calls: HashMap<(TurnId, WorkerId), _> = HashMap::new();
    let mut bids = Vec::new();
    for (turn, session) in matches.into_iter().take(capacity.count()) {
        // The share may run out here: one token's turns may match more workers than the token has slots for.
        let is_claimed = heads.iter().any(|head| head.turn == turn && head.is_reserved);
        let share = if is_claimed { engine.host.share_of_held(turn) } else { engine.host.share(turn) };
        let Some(share) = share else { continue };
        let (token, token_hash) = Host::mint_turn_token();
        let worker = session.worker.id;
        bids.push(Bid { turn, worker, token_hash });
        calls.insert((turn, worker), (session.offer_guard(), token, share));
    }
    let claims = engine.store.claim_remote(&bids).await?;
    // Without a claim the next search would find the same turns.
    if are_more && !claims.is_empty() {
        engine.store.wake().queue.look();
    }
    for (claim, worker) in claims {
        let Some((guard, token, share)) = calls.remove(&(claim.turn, worker)) else { continue };
        let (turn, epoch) = (claim.turn, claim.epoch);
        // A drain may have begun while the claim was in flight.
        let is_taken = !engine.supervisor.soft().is_cancelled()
            && engine.host.take_remote(RemoteClaim { claim, guard, token, share }, &mut capacity);
        if !is_taken {
            engine.give_back(turn, epoch).await;
        }
    }
    Ok(is_left)
}

impl Head {
    /// Whether the head start of the conversation's last worker is over.
    fn has_waited(&self) -> bool {
        self.is_reserved || self.holder.is_none() || self.waited_ms >= HEAD_START_MS
    }
}

/// Chooses a worker for each turn: the bound worker, else the worker that served the conversation last, else,
/// after the head start, the worker with the most capacity.
fn matches(heads: &[Head], waiting: &[Arc<WorkerSession>]) -> Vec<Match> {
    let mut room: HashMap<WorkerId, u32> =
        waiting.iter().map(|session| (session.worker.id, session.room())).collect();
    let mut matches = Vec::new();
    for head in heads {
        let can_have = |session: &&Arc<WorkerSession>| {
            let worker = &session.worker;
            let is_its = worker.conversation.map_or(!head.is_reserved, |bound| bound == head.conversation);
            // A worker that was started for another revision cannot run this turn.
            let is_its = is_its && (!head.is_reserved || worker.agent_revision == head.agent_revision);
            worker.agent == head.agent && is_its && room.get(&worker.id).is_some_and(|room| *room > 0)
        };
        let able = || waiting.iter().filter(can_have);
        let is_holder = |session: &&Arc<WorkerSession>| Some(session.worker.id) == head.holder;
        let is_bound = |session: &&Arc<WorkerSession>| session.worker.conversation.is_some();
        let chosen = able().find(is_bound).or_else(|| able().find(is_holder)).or_else(|| {
            able().max_by_key(|session| room.get(&session.worker.id)).filter(|_| head.has_waited())
        });
        if let Some(session) = chosen {
            room.entry(session.worker.id).and_modify(|room| *room -= 1);
            matches.push((head.turn, session.clone()));
        }
    }
    matches
}

/// Moves turns here for the workers that call this replica, until cancelled. Requests are batched; two requests
/// for one turn are never in flight at once.
pub(super) async fn adopt_on(engine: Engine, until: CancellationToken) {
    let adopting = async {
        let mut waiting: VecDeque<AdoptRequest> = VecDeque::new();
        let mut moving = HashSet::new();
        let mut moves = FuturesUnordered::new();
        loop {
            tokio::select! {
                requests = engine.rendezvous.next_requests(MOVES_MAX), if waiting.len() < MOVES_MAX => {
                    if requests.is_empty() {
                        return;
                    }
                    waiting.extend(requests);
                }
                Some(moved) = moves.next() => {
                    for turn in moved {
                        moving.remove(&turn);
                    }
                }
            }
            while moves.len() < MOVING_MAX {
                let together = together(&mut waiting, &mut moving);
                if together.is_empty() {
                    break;
                }
                moves.push(adopt(&engine, together));
            }
        }
    };
    until.run_until_cancelled(adopting).await;
}

/// The next batch: waiting requests whose turns are not being moved.
fn together(waiting: &mut VecDeque<AdoptRequest>, moving: &mut HashSet<TurnId>) -> Vec<AdoptRequest> {
    let mut together = Vec::new();
    for request in std::mem::take(waiting) {
        if together.len() < MOVES_MAX && moving.insert(request.turn) {
            together.push(request);
        } else {
            waiting.push_back(request);
        }
    }
    together
}

async fn adopt(engine: &Engine, requests: Vec<AdoptRequest>) -> Vec<TurnId> {
    let turns = requests.iter().map(|request| request.turn).collect();
    engine.host.adopt(requests).await;
    turns
}

/// Publishes whether this replica takes turns, and dismisses silent workers, until cancelled.
pub(super) async fn listen_on(engine: Engine, until: CancellationToken) {
    while until.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
        let rendezvous = &engine.rendezvous;
        // A drain may have begun.
        engine.open_or_shut();
        for session in rendezvous.sessions().iter().filter(|session| session.liveness.tick(false)) {
            rendezvous.dismiss(session);
            let lines = rendezvous.lines().into_iter().filter(|line| line.worker == session.worker.id);
            lines.for_each(|line| line.liveness.cut_off());
            let (worker, exit) =
                (session.worker.id, if session.is_leaving() { "left" } else { "not heard any more" });
            tracing::info!(worker_id = %worker, exit, "a remote worker is gone");
            if let Err(why) = engine.store.remote_worker_ended(worker, exit).await {
                warn_of!(why, worker_id = %worker, "a remote worker's end was not recorded");
            }
        }
    }
}

/// Ends runs whose turns are now held elsewhere, and passes known exit reports to their turns. Runs before
/// commands are read, because commands are for the present holder.
pub(super) async fn look_after(engine: &Engine) -> Result<(), StoreError> {
    let lines = engine.rendezvous.lines();
    if lines.is_empty() {
        return Ok(());
    }
    let held: Vec<(TurnId, i32)> = lines.iter().map(|line| (line.turn, line.epoch)).collect();
    engine.host.let_go(&engine.store.strayed(&held).await?);
    let mut workers: Vec<WorkerId> = lines.iter().map(|line| line.worker).collect();
    workers.sort();
    workers.dedup();
    for (worker, why) in engine.store.exit_reports(&workers).await? {
        for line in lines.iter().filter(|line| line.worker == worker) {
            line.report_exit(why.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{rendezvous::Rendezvous, store::remote_workers::RemoteWorker};

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn waiting(
        rendezvous: &Rendezvous,
        n: u128,
        conversation: Option<u128>,
        room: u32,
    ) -> Arc<WorkerSession> {
        let conversation = conversation.map(|n| ConversationId(id(n)));
        let agent = "a".to_owned();
        let worker = RemoteWorker { id: WorkerId(id(n)), agent, agent_revision: 1, conversation, name: None };
        let session = rendezvous.admit(worker, [0; 32], None).unwrap();
        std::mem::forget(session.poll(room));
        session
    }

    fn head(n: u128, holder: Option<u128>, waited_ms: i64) -> Head {
        let (turn, conversation, agent) = (TurnId(id(n)), ConversationId(id(n)), "a".to_owned());
        Head {
            turn,
            agent,
            conversation,
            holder: holder.map(|n| WorkerId(id(n))),
            waited_ms,
            is_reserved: false,
            agent_revision: 1,
        }
    }

    fn matched(heads: &[Head], waiting: &[Arc<WorkerSession>]) -> Vec<(u128, u128)> {
        let ids = |(turn, session): Match| (turn.0.as_u128(), session.worker.id.0.as_u128());
        matches(heads, waiting).into_iter().map(ids).collect()
    }

    #[test]
    fn a_turn_goes_to_whoever_knows_its_conversation_and_else_to_the_one_with_most_room() {
        let rendezvous = Rendezvous::default();
        let workers = [
            waiting(&rendezvous, 1, None, 1),
            waiting(&rendezvous, 2, None, 3),
            waiting(&rendezvous, 3, Some(70), 1),
        ];
        assert_eq!(matched(&[head(10, None, 0)], &workers), [(10, 2)]);
        assert_eq!(matched(&[head(10, Some(1), 0)], &workers), [(10, 1)]);
        assert_eq!(matched(&[head(10, Some(99), 0)], &workers), [], "its own may come yet");
        assert_eq!(matched(&[head(10, Some(99), 50)], &workers), [(10, 2)]);
        assert_eq!(matched(&[head(70, Some(1), 0)], &workers), [(70, 3)]);
        let reserved = Head { is_reserved: true, ..head(11, None, 0) };
        assert_eq!(matched(&[reserved], &workers), [], "it waits for a worker of its own");
        let reserved = Head { is_reserved: true, ..head(70, None, 0) };
        assert_eq!(matched(std::slice::from_ref(&reserved), &workers), [(70, 3)]);
        let newer = Head { agent_revision: 2, ..reserved };
        assert_eq!(matched(&[newer], &workers), [], "it waits for a worker of its own revision");
        let many: Vec<Head> = (10..20).map(|n| head(n, None, 0)).collect();
        assert_eq!(matched(&many, &workers).len(), 4, "no more than they have room for");
    }
}
