//! Turns that are claimed in the commit that accepts them, or claimed as `running`, because a worker is ready.

use lastword::{
    agent::{AgentSpec, Runtime},
    event::{Kind, NewEvent},
    id::{TurnId, WorkerId},
    store::{
        accept::{Accepted, ClaimOffer, NewTurn},
        claim::{Claim, Phase, Ready, Seats, Warm},
        group_commit::Written,
        queue_hints::FRONT,
    },
};
use serde_json::json;

use crate::{
    cases,
    cases::all,
    ground::{Replica, Server, finish_of, fresh, next_in, refusal},
};

/// A place, and no worker.
const PLACE: ClaimOffer = ClaimOffer { generation: None, worker: None };

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_place_is_claimed_with_the_acceptance,
        a_worker_that_is_ready_has_the_turn_with_the_acceptance,
        what_others_should_serve_is_left_to_them,
        an_offer_of_the_judged_is_no_claim,
        many_turns_are_accepted_in_one_commit_each_with_its_own_verdict,
        a_turn_of_an_older_revision_is_told_to_come_again,
        ready_workers_have_as_many_turns_as_they_have_room_for,
        a_conversations_own_worker_has_its_next_turn_with_the_claim,
        what_was_said_last_goes_with_the_last_word,
    ];
    all(cases).await;
}

async fn offered(replica: &Replica, new: &NewTurn, offer: ClaimOffer) -> Accepted {
    let verdicts = replica.store.accept_all(&[(new, Some(offer))]).await.unwrap();
    verdicts.into_iter().next().unwrap().unwrap()
}

fn worker(replica: &Replica) -> WorkerId {
    WorkerId(replica.store.clock().mint())
}

async fn status(replica: &Replica, turn: TurnId) -> String {
    replica.store.turn(turn).await.unwrap().unwrap().status.to_string()
}

async fn a_place_is_claimed_with_the_acceptance(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let new = fresh(&replica.store);
    let claim = offered(&replica, &new, PLACE).await.claim.unwrap();
    assert_eq!((claim.turn, claim.epoch, claim.last_seq, claim.phase), (new.id, 1, 0, Phase::Starting));
    assert_eq!((claim.generation, claim.assignment.ordinal), (1, 1));
    assert_eq!(status(&replica, new.id).await, "queued");
    assert!(replica.claim(10).await.is_empty(), "claimed twice");

    // The answer was lost: asked for again it is the same claim.
    let again = offered(&replica, &new, PLACE).await;
    assert!(again.is_repeat);
    let again = again.claim.unwrap();
    assert_eq!((again.epoch, again.generation, again.phase), (1, 1, Phase::Starting));

    // What need not wait finds no queue full.
    let waiting = replica.accept().await;
    let full = || NewTurn { queue_max: 1, ..fresh(&replica.store) };
    assert_eq!(refusal(replica.store.accept(&full()).await).0, "LW429");
    let other = offered(&replica, &full(), PLACE).await.claim.unwrap();
    for turn in [&claim, &other, &replica.claim_of(waiting.id).await] {
        let seq = replica.start(turn).await.unwrap();
        replica.finish(turn, seq).await;
    }
    assert_eq!(ground.kinds(new.id).await, "accepted started completed");
    ground.assert_whole().await;
}

async fn a_worker_that_is_ready_has_the_turn_with_the_acceptance(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (new, ready) = (fresh(&replica.store), worker(&replica));
    let accepted = offered(&replica, &new, ClaimOffer { worker: Some(ready), ..PLACE }).await;
    assert!(accepted.is_running());
    let claim = accepted.claim.unwrap();
    assert_eq!((claim.epoch, claim.last_seq, claim.phase), (1, 1, Phase::Running(ready)));
    assert_eq!(status(&replica, new.id).await, "running");
    let started = &replica.store.read_after(new.id, 0, 1).await.unwrap()[0];
    assert_eq!(
        (started.kind, started.data.as_str()),
        (Kind::Started, &*format!(r#"{{"worker_id":"{ready}"}}"#))
    );

    // Asked for again it is for a worker that will never receive it, and goes back to the queue though it
    // was `running`; what may have been received stays.
    let again = offered(&replica, &new, PLACE).await.claim.unwrap();
    assert_eq!(again.phase, Phase::Forsaken);
    assert!(!replica.store.release(new.id, 1, false).await.unwrap());
    assert!(replica.store.release(new.id, 1, true).await.unwrap());
    assert_eq!(replica.finish(&claim, 1).await, Written::LeaseLost);
    let claim = replica.claim_of(new.id).await;
    assert_eq!((claim.epoch, claim.last_seq), (2, 1));
    let seq = replica.start(&claim).await.unwrap();
    replica.finish(&claim, seq).await;
    assert_eq!(ground.kinds(new.id).await, "accepted started started completed");
    ground.assert_whole().await;
}

async fn what_others_should_serve_is_left_to_them(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let first = fresh(&one.store);
    let claim = offered(&one, &first, PLACE).await.claim.unwrap();
    let behind = next_in(&other.store, first.conversation);
    let any = ClaimOffer { worker: Some(worker(&other)), ..PLACE };
    assert!(offered(&other, &behind, any).await.claim.is_none(), "a turn waits before it");
    let seq = one.start(&claim).await.unwrap();
    one.finish(&claim, seq).await;
    let behind = one.claim(10).await.pop().unwrap();
    let seq = one.start(&behind).await.unwrap();
    one.finish(&behind, seq).await;

    // Who served last may have a warm worker; one that serves any conversation is as good.
    let next = next_in(&other.store, first.conversation);
    assert!(offered(&other, &next, PLACE).await.claim.is_none());
    let claim = one.claim(10).await.pop().unwrap();
    let seq = one.start(&claim).await.unwrap();
    one.finish(&claim, seq).await;
    let next = next_in(&other.store, first.conversation);
    assert!(offered(&other, &next, any).await.is_running());
    ground.assert_whole().await;
}

async fn an_offer_of_the_judged_is_no_claim(server: &Server) {
    let ground = server.ground().await;
    let (judged, other) = (ground.replica().await, ground.replica().await);
    ground.lose(judged.store.replica()).await;
    let new = fresh(&judged.store);
    let offer = ClaimOffer { worker: Some(worker(&judged)), ..PLACE };
    assert!(offered(&judged, &new, offer).await.claim.is_none());
    assert_eq!(other.claim_of(new.id).await.epoch, 1);
    ground.assert_whole().await;
}

async fn many_turns_are_accepted_in_one_commit_each_with_its_own_verdict(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let mut news: Vec<NewTurn> = (0..20).map(|_| fresh(&replica.store)).collect();
    news.sort_by_key(|new| new.conversation);
    news[3].is_new_conversation = false;
    news[7].depth_max = 0;
    for n in [11, 12] {
        news[n].idempotency = Some((format!("key {n}"), "body".to_owned()));
    }
    let known = fresh(&replica.store);
    let known = NewTurn { idempotency: news[12].idempotency.clone(), ..known };
    replica.store.accept(&known).await.unwrap();
    let wanted: Vec<_> = news.iter().map(|new| (new, Some(PLACE))).collect();
    let verdicts = replica.store.accept_all(&wanted).await.unwrap();
    for (n, (new, verdict)) in news.iter().zip(verdicts).enumerate() {
        match n {
            3 => assert_eq!(refusal(verdict).0, "LW404"),
            7 => assert_eq!(refusal(verdict).0, "LW429"),
            12 => assert_eq!(verdict.map(|it| (it.id, it.is_repeat)).unwrap(), (known.id, true)),
            _ => assert_eq!(verdict.unwrap().claim.unwrap().turn, new.id),
        }
    }
    assert_eq!(ground.ask("select count(*) from conversations").await, "18");
    let commits = "select count(distinct xmin::text) from turns";
    assert_eq!(ground.ask(commits).await, "2", "the known one's, and one for all others");
    ground.assert_whole().await;
}

async fn a_turn_of_an_older_revision_is_told_to_come_again(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    for program in ["true", "false"] {
        let spec = AgentSpec::process(vec![program.to_owned()]);
        replica.store.put_agent("demo", Some(&spec)).await.unwrap();
    }
    let mut new = fresh(&replica.store);
    assert_eq!(refusal(replica.store.accept(&new).await).0, "LW412");
    assert_eq!(ground.ask("select count(*) from conversations").await, "0");
    new.agent.revision = 2;
    replica.store.accept(&new).await.unwrap();
}

async fn ready_workers_have_as_many_turns_as_they_have_room_for(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    for _ in 0..6 {
        replica.accept().await;
    }
    let workers = [worker(&replica), worker(&replica), worker(&replica)];
    let seats = |n: usize, agent: &str, revision, count| Seats {
        agent: agent.to_owned(),
        revision,
        worker: workers[n],
        count,
    };
    let ready = Ready {
        warm: Vec::new(),
        seats: vec![seats(0, "demo", 1, 2), seats(1, "demo", 1, 1), seats(2, "demo", 2, 9)],
        barred: Vec::new(),
    };
    let claims = replica.store.claim(&[Runtime::Process], &ready, FRONT, 100).await.unwrap();
    let having = |phase: Phase| claims.iter().filter(|claim| claim.phase == phase).count();
    let counts = [Phase::Running(workers[0]), Phase::Running(workers[1]), Phase::Starting].map(having);
    assert_eq!((counts, claims.len()), ([2, 1, 3], 6));
    for claim in &claims {
        let seq = match claim.phase {
            Phase::Starting => replica.start(claim).await.unwrap(),
            _ => claim.last_seq,
        };
        if let Phase::Running(worker) = claim.phase {
            let started = &replica.store.read_after(claim.turn, 0, 1).await.unwrap()[0];
            assert_eq!(started.data, json!({ "worker_id": worker }).to_string());
        }
        replica.finish(claim, seq).await;
        assert_eq!(ground.kinds(claim.turn).await, "accepted started completed");
    }
    ground.assert_whole().await;
}

async fn a_conversations_own_worker_has_its_next_turn_with_the_claim(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let new = fresh(&replica.store);
    let claim = offered(&replica, &new, PLACE).await.claim.unwrap();
    let own = worker(&replica);
    let seq = replica.start(&claim).await.unwrap();
    replica.finish(&claim, seq).await;
    let next = async |generation: i64, revision: i32| -> Claim {
        replica.store.accept(&next_in(&replica.store, new.conversation)).await.unwrap();
        let warm = Warm { conversation: new.conversation, generation, idle: Some((own, revision)) };
        let ready = Ready { warm: vec![warm], ..Ready::default() };
        replica.store.claim(&[Runtime::Process], &ready, FRONT, 10).await.unwrap().pop().unwrap()
    };
    let running = next(1, 1).await;
    assert_eq!((running.phase, running.generation), (Phase::Running(own), 1));
    replica.finish(&running, running.last_seq).await;
    let older = next(1, 7).await;
    assert_eq!((older.phase, older.generation), (Phase::Starting, 1), "of another revision");
    let seq = replica.start(&older).await.unwrap();
    replica.finish(&older, seq).await;
    let taken_over = next(0, 1).await;
    assert_eq!((taken_over.phase, taken_over.generation), (Phase::Starting, 2));
    let seq = replica.start(&taken_over).await.unwrap();
    replica.finish(&taken_over, seq).await;

    // The same where it is accepted.
    let next = next_in(&replica.store, new.conversation);
    let offer = ClaimOffer { generation: Some(1), worker: Some(own) };
    let late = offered(&replica, &next, offer).await.claim.unwrap();
    assert_eq!((late.phase, late.generation), (Phase::Starting, 3), "another has taken over since");
    ground.assert_whole().await;
}

async fn what_was_said_last_goes_with_the_last_word(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (claim, seq) = replica.running().await;
    let said: Vec<_> =
        (1..=3).map(|n| NewEvent::new(Kind::Delta, &json!({"text": format!("{n} ")}))).collect();
    let mut finish = finish_of(&claim, seq);
    finish.said = said;
    let mut stale = finish.clone();
    stale.epoch = 7;
    assert_eq!(replica.writer.finish(stale).await, Written::LeaseLost);
    assert_eq!(ground.kinds(claim.turn).await, "accepted started");
    assert_eq!(replica.writer.finish(finish.clone()).await, Written::Done(seq + 4));
    assert_eq!(ground.kinds(claim.turn).await, "accepted started delta delta delta completed");
    // Repeated after an unknown commit it is the same, and nothing is written twice.
    assert_eq!(replica.writer.finish(finish).await, Written::Done(seq + 4));
    assert_eq!(ground.kinds(claim.turn).await, "accepted started delta delta delta completed");
    let commits = format!(
        "select count(distinct xmin::text) from turn_events where turn_id = '{}' and seq > 1",
        claim.turn.0
    );
    assert_eq!(ground.ask(&commits).await, "1");
    ground.assert_whole().await;
}
