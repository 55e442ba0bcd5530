//! I9: no turn is claimed twice, no two turns of a conversation at a time, and in order.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use futures_util::future::join_all;
use lastword::{
    agent::Runtime,
    event::Kind,
    id::{ConversationId, TurnId},
    store::{
        claim::{Claim, Ready, Warm},
        group_commit::Written,
        queue_hints::FRONT,
    },
};

use crate::{
    cases,
    cases::all,
    ground::{Replica, Server, fresh, next_in, until},
};

const CONVERSATIONS: usize = 60;
const TURNS_EACH: usize = 5;

/// What the claimers have seen together.
#[derive(Default)]
struct Seen {
    turns: HashSet<TurnId>,
    busy: HashSet<ConversationId>,
    ordinals: HashMap<ConversationId, i64>,
    claims: [usize; 2],
    wrongs: Vec<String>,
}

impl Seen {
    fn note(&mut self, replica: usize, claim: &Claim, ordinal: i64) {
        self.claims[replica] += 1;
        if claim.epoch != 1 || !self.turns.insert(claim.turn) {
            self.wrongs.push(format!("{} was claimed twice", claim.turn));
        }
        if !self.busy.insert(claim.conversation) {
            self.wrongs.push(format!("{} had two turns at once", claim.conversation));
        }
        let before = self.ordinals.insert(claim.conversation, ordinal).unwrap_or(0);
        if ordinal != before + 1 {
            self.wrongs.push(format!("{}: {ordinal} came after {before}", claim.conversation));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_claimed() {
    let server = Server::start().await;
    let cases = cases![&server;
        two_replicas_never_claim_one_turn_twice_nor_two_of_one_conversation,
        a_conversation_runs_its_turns_in_the_order_they_were_accepted,
        only_a_ready_replica_claims_and_a_new_one_starts_workers_anew,
        a_replica_is_told_what_it_holds_and_which_warm_workers_it_has_no_more,
        a_claim_begins_where_it_is_told_to,
        whoever_makes_a_turn_claimable_names_it,
        a_turn_that_nobody_has_named_is_found_by_a_survey,
        a_second_claimed_turn_of_a_conversation_is_refused_by_an_index,
    ];
    all(cases).await;
}

async fn two_replicas_never_claim_one_turn_twice_nor_two_of_one_conversation(server: &Server) {
    let ground = server.ground().await;
    let replicas = [ground.replica().await, ground.replica().await];
    for _ in 0..CONVERSATIONS {
        let first = replicas[0].accept().await;
        for i in 1..TURNS_EACH {
            let store = &replicas[i % 2].store;
            store.accept(&next_in(store, first.conversation)).await.unwrap();
        }
    }
    let seen = Mutex::new(Seen::default());
    join_all((0..8).map(|task| run_turns(task % 2, &replicas[task % 2], &seen))).await;

    let seen = seen.into_inner().unwrap();
    assert!(seen.wrongs.is_empty(), "{:#?}", seen.wrongs);
    assert_eq!(seen.turns.len(), CONVERSATIONS * TURNS_EACH);
    assert!(seen.claims.iter().all(|&claims| claims > 0), "one replica did it all: {:?}", seen.claims);
    assert_eq!(ground.ask("select count(*) from turns where status <> 'completed'").await, "0");
    ground.assert_whole().await;
}

/// Claims and finishes turns until there are none left.
async fn run_turns(index: usize, replica: &Replica, seen: &Mutex<Seen>) {
    let all = CONVERSATIONS * TURNS_EACH;
    until("the last claim", async || {
        for claim in replica.claim(7).await {
            let ordinal = claim.assignment.ordinal;
            seen.lock().unwrap().note(index, &claim, ordinal);
            let seq = replica.start(&claim).await.unwrap();
            assert_eq!(replica.append(&claim, seq, Kind::Delta).await, Written::Done(seq + 1));
            // Before the commit: from then on the next turn may be claimed.
            seen.lock().unwrap().busy.remove(&claim.conversation);
            assert_eq!(replica.finish(&claim, seq + 1).await, Written::Done(seq + 2));
        }
        (seen.lock().unwrap().turns.len() == all).then_some(())
    })
    .await;
}

async fn a_conversation_runs_its_turns_in_the_order_they_were_accepted(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let first = replica.accept().await;
    let mut turns = vec![first.id];
    for _ in 0..4 {
        let next = next_in(&replica.store, first.conversation);
        replica.store.accept(&next).await.unwrap();
        turns.push(next.id);
    }
    for (i, turn) in turns.iter().enumerate() {
        let claims = replica.claim(10).await;
        let claimed: Vec<_> = claims.iter().map(|claim| claim.turn).collect();
        assert_eq!(claimed, [*turn], "turn {i}");
        assert!(replica.claim(10).await.is_empty(), "a second one beside turn {i}");
        let seq = replica.start(&claims[0]).await.unwrap();
        replica.finish(&claims[0], seq).await;
    }
    ground.assert_whole().await;
}

async fn only_a_ready_replica_claims_and_a_new_one_starts_workers_anew(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let stranger = ground.open();
    let turn = one.accept().await;

    assert!(stranger.claim(&[Runtime::Process], &Ready::default(), FRONT, 10).await.unwrap().is_empty());
    assert!(other.store.start_drain().await.unwrap());
    assert!(other.claim(10).await.is_empty(), "a draining replica claimed");
    let claim = one.claim_of(turn.id).await;
    assert_eq!(claim.generation, 1);
    let seq = one.start(&claim).await.unwrap();
    one.finish(&claim, seq).await;

    // A warm worker of the generation goes on; without one the generation changes.
    let warm = Warm { conversation: turn.conversation, generation: claim.generation, idle: None };
    let ready = Ready { warm: vec![warm], ..Ready::default() };
    for (ready, generation) in [(&ready, 1), (&Ready::default(), 2), (&ready, 3)] {
        one.store.accept(&next_in(&one.store, turn.conversation)).await.unwrap();
        let claims = one.store.claim(&[Runtime::Process], ready, FRONT, 10).await.unwrap();
        assert_eq!(claims[0].generation, generation);
        let seq = one.start(&claims[0]).await.unwrap();
        one.finish(&claims[0], seq).await;
    }
    ground.assert_whole().await;
}

async fn a_replica_is_told_what_it_holds_and_which_warm_workers_it_has_no_more(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let (claim, seq) = one.running().await;
    let its = async |replica: &Replica, generation| {
        let held = replica.store.held(&[(claim.conversation, generation)]).await.unwrap();
        (held.turns.into_iter().collect::<Vec<_>>(), held.taken_over)
    };
    let (turns, taken_over) = (vec![(claim.turn, claim.epoch)], vec![claim.conversation]);
    assert_eq!(its(&one, claim.generation).await, (turns.clone(), vec![]));
    assert_eq!(its(&one, claim.generation - 1).await, (turns, taken_over.clone()), "of an older generation");
    assert_eq!(its(&other, claim.generation).await, (vec![], taken_over), "another's");
    one.finish(&claim, seq).await;
    assert_eq!(its(&one, claim.generation).await, (vec![], vec![]));
    ground.assert_whole().await;
}

async fn a_claim_begins_where_it_is_told_to(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(replica.accept().await.id);
    }
    let claims = replica.store.claim(&[Runtime::Process], &Ready::default(), turns[1], 10).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.turn).collect::<Vec<_>>(), turns[1..]);
    assert_eq!(replica.claim(10).await[0].turn, turns[0]);
    ground.assert_whole().await;
}

async fn whoever_makes_a_turn_claimable_names_it(server: &Server) {
    let ground = server.ground().await;
    let (one, lost) = (ground.replica().await, ground.replica().await);
    let news = || one.store.wake().queue.take_named();
    let first = one.accept().await;
    assert_eq!([news(), news()], [Some(first.id), None]);

    let claim = one.claim_of(first.id).await;
    news();
    assert!(one.store.release(first.id, claim.epoch, true).await.unwrap());
    assert_eq!(news(), Some(first.id));

    let claim = one.claim_of(first.id).await;
    let seq = one.start(&claim).await.unwrap();
    let next = next_in(&one.store, first.conversation);
    one.store.accept(&next).await.unwrap();
    news();
    one.finish(&claim, seq).await;
    assert_eq!(news(), Some(next.id));

    lost.claim_of(next.id).await;
    ground.lose(lost.store.replica()).await;
    news();
    assert_eq!(one.store.close_due(&[], 100).await.unwrap().len(), 1);
    assert!(news().is_some_and(|named| named <= next.id));
    ground.assert_whole().await;
}

async fn a_turn_that_nobody_has_named_is_found_by_a_survey(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let untold = fresh(&other.store);
    // Within one millisecond chance orders the ids of two replicas.
    let millisecond = |id: uuid::Uuid| id.as_u128() >> 80;
    while millisecond(one.store.clock().mint()) <= millisecond(untold.id.0) {}
    one.store.outlook().await.unwrap();
    assert_eq!(one.store.wake().queue.take_named(), None);
    other.store.accept(&untold).await.unwrap();
    one.store.outlook().await.unwrap();
    assert_eq!(one.store.wake().queue.take_named(), Some(untold.id));
}

async fn a_second_claimed_turn_of_a_conversation_is_refused_by_an_index(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let first = fresh(&replica.store);
    replica.store.accept(&first).await.unwrap();
    let second = next_in(&replica.store, first.conversation);
    replica.store.accept(&second).await.unwrap();
    replica.claim_of(first.id).await;
    let refused = ground
        .run(&format!(
            "update inflight set phase = 'starting', clock = 'startup', replica = '{}' where turn_id = '{}'",
            replica.store.replica().0,
            second.id.0
        ))
        .await
        .unwrap_err();
    let refused = refused.as_database_error().unwrap();
    assert_eq!(refused.constraint(), Some("inflight_one_claimed"), "{refused}");
}
