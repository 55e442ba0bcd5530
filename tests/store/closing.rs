//! I6 and I10: which turns any replica may end, which it gives back, and which it leaves alone.

use lastword::{
    event::Kind,
    failure::Code,
    id::TurnId,
    store::{accept::NewTurn, claim::Claim, closing::Closed, group_commit::Written},
    turn::CancelledBy,
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, fresh, hasty_agent, last_word, next_in, safe_agent, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_turn_that_waited_too_long_ends_and_the_next_one_gets_its_own_time,
        what_a_lost_replica_ran_ends_and_what_it_was_starting_is_run_again,
        a_lost_replicas_remote_turn_is_left_to_its_worker_for_a_moment,
        a_turn_is_tried_three_times_at_most,
        a_turn_that_was_under_way_on_two_lost_replicas_is_not_tried_on_a_third,
        a_running_turn_is_run_again_only_where_that_is_safe_and_nothing_was_said,
        what_a_living_replica_left_overdue_ends_only_when_it_is_named,
        a_cancelled_turn_of_a_lost_replica_ends_as_cancelled,
    ];
    all(cases).await;
}

async fn a_turn_that_waited_too_long_ends_and_the_next_one_gets_its_own_time(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let store = &replica.store;
    let late = NewTurn { agent: hasty_agent(), ..fresh(store) };
    store.accept(&late).await.unwrap();
    let behind = next_in(store, late.conversation);
    store.accept(&behind).await.unwrap();

    until("a lapsed queue clock", async || (store.outlook().await.unwrap().closable == 1).then_some(()))
        .await;
    let closed = store.close_due(&[], 100).await.unwrap();
    assert_eq!(told(&closed), [(late.id, "failed", Code::QueueTimeout.as_str())]);
    let (kind, word) = last_word(store, late.id).await;
    assert_eq!((kind, &word["error"]["code"]), (Kind::Failed, &Code::QueueTimeout.as_str().into()));
    assert_eq!(word["error"]["message"], Code::QueueTimeout.message());
    assert_eq!(word["error"]["safe_to_retry"], true, "no worker received it");
    assert_eq!(word["error"]["trace_id"], "0af7651916cd43dd8448eb211c80319c");

    // The one behind counts its wait from when it came to the head.
    let is_head = format!("select head_at is not null from inflight where turn_id = '{}'", behind.id.0);
    assert_eq!(ground.ask(&is_head).await, "true");
    assert!(store.close_due(&[], 100).await.unwrap().is_empty());
    replica.claim_of(behind.id).await;
    ground.assert_whole().await;
}

async fn what_a_lost_replica_ran_ends_and_what_it_was_starting_is_run_again(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let (running, seq) = doomed.running().await;
    let starting = doomed.claimed().await;
    assert!(judge.store.close_due(&[], 100).await.unwrap().is_empty(), "its holder lives");

    ground.lose(doomed.store.replica()).await;
    assert_eq!(judge.store.outlook().await.unwrap().closable, 2);
    let mut closed = judge.store.close_due(&[], 100).await.unwrap();
    closed.sort_by_key(|closed| closed.turn);
    let lost = Code::ReplicaLost.as_str();
    assert_eq!(told(&closed), [(running.turn, "failed", lost), (starting.turn, "queued", lost)]);
    let (_, word) = last_word(&judge.store, running.turn).await;
    assert_eq!((&word["error"]["code"], &word["error"]["attempt"]), (&lost.into(), &1.into()));
    assert_eq!(word["error"]["safe_to_retry"], false);

    // The lost one comes back to life: too late.
    assert_eq!(doomed.append(&running, seq, Kind::Delta).await, Written::LeaseLost);
    assert_eq!(doomed.start(&starting).await, None);
    assert!(doomed.claim(10).await.is_empty(), "a lost replica claimed");

    let again = judge.claim_of(starting.turn).await;
    assert_eq!(again.epoch, 2);
    let seq = judge.start(&again).await.unwrap();
    assert_eq!(judge.finish(&again, seq).await, Written::Done(seq + 1));
    assert_eq!(ground.kinds(starting.turn).await, "accepted started completed");
    ground.assert_whole().await;
}

async fn a_lost_replicas_remote_turn_is_left_to_its_worker_for_a_moment(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let (claim, _) = doomed.running().await;
    let turn = claim.turn;
    assert_eq!(ground.run("update inflight set runtime = 'remote'").await.unwrap(), 1);
    ground.lose(doomed.store.replica()).await;

    let outlook = judge.store.outlook().await.unwrap();
    assert_eq!((outlook.rows, outlook.closable), (1, 0));
    let next_ms = outlook.next_ms.unwrap();
    assert!((1..=2505).contains(&next_ms), "the pass looks again in {next_ms} ms");
    assert!(judge.store.close_due(&[], 100).await.unwrap().is_empty());

    // A clock that is set back makes nobody wait.
    let set_gone = async |away: &str| {
        let gone =
            format!("update replicas set gone_at = clock_timestamp() {away} where gone_at is not null");
        assert_eq!(ground.run(&gone).await.unwrap(), 1);
    };
    set_gone("+ interval '60 s'").await;
    assert_eq!(judge.store.outlook().await.unwrap().closable, 1);
    set_gone("").await;
    assert_eq!(judge.store.outlook().await.unwrap().closable, 0);
    set_gone("- interval '2501 ms'").await;
    assert_eq!(judge.store.outlook().await.unwrap().closable, 1);
    let closed = judge.store.close_due(&[], 100).await.unwrap();
    assert_eq!(told(&closed), [(turn, "failed", "replica_lost")]);
    ground.assert_whole().await;
}

async fn a_turn_is_tried_three_times_at_most(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let turn = judge.accept().await.id;
    for attempt in 1..=3 {
        let claim = doomed.claim_of(turn).await;
        assert_eq!(claim.epoch, attempt);
        let is_released = doomed.store.release(turn, attempt, true).await.unwrap();
        assert_eq!(is_released, attempt < 3, "attempt {attempt}");
    }
    lose(&ground, &doomed).await;
    let closed = judge.store.close_due(&[], 100).await.unwrap();
    assert_eq!(told(&closed), [(turn, "failed", Code::ReplicaLost.as_str())]);
    assert_eq!(last_word(&judge.store, turn).await.1["error"]["safe_to_retry"], true);
    ground.assert_whole().await;
}

async fn a_turn_that_was_under_way_on_two_lost_replicas_is_not_tried_on_a_third(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let lost = Code::ReplicaLost.as_str();
    // Also one that may be run again once a worker has had it.
    for is_running in [false, true] {
        let new = NewTurn { agent: safe_agent(), ..fresh(&judge.store) };
        judge.store.accept(&new).await.unwrap();
        for (epoch, kind) in [(1, "queued"), (2, "failed")] {
            let claim = doomed.claim_of(new.id).await;
            assert_eq!(claim.epoch, epoch);
            if is_running {
                doomed.start(&claim).await.unwrap();
            }
            lose(&ground, &doomed).await;
            let closed = judge.store.close_due(&[], 100).await.unwrap();
            assert_eq!(told(&closed), [(new.id, kind, lost)], "attempt {epoch}");
        }
        let (_, word) = last_word(&judge.store, new.id).await;
        assert_eq!(word["error"]["attempt"], 2, "{word}");
    }

    // Who gave it back, or left it behind at the end of a drain, was not lost.
    let turn = judge.accept().await.id;
    doomed.claim_of(turn).await;
    assert!(doomed.store.release(turn, 1, true).await.unwrap());
    doomed.claim_of(turn).await;
    doomed.store.leave().await.unwrap();
    let closed = judge.store.close_due(&[], 100).await.unwrap();
    assert_eq!(told(&closed), [(turn, "queued", lost)]);
    assert_eq!(ground.ask(&losses(turn)).await, "0");
    ground.assert_whole().await;
}

/// The verdict on a replica, which starts over under another id.
async fn lose(ground: &Ground, replica: &Replica) {
    ground.lose(replica.store.replica()).await;
    replica.store.rename_replica();
    replica.store.register("http://127.0.0.1:1", 1).await.unwrap();
}

fn losses(turn: TurnId) -> String {
    format!("select replicas_lost from inflight where turn_id = '{}'", turn.0)
}

async fn a_running_turn_is_run_again_only_where_that_is_safe_and_nothing_was_said(server: &Server) {
    let ground = server.ground().await;
    let judge = ground.replica().await;
    let cases: [(bool, &[Kind], &str); 6] = [
        (true, &[], "queued"),
        (true, &[Kind::Status, Kind::Ephemeral], "queued"),
        (true, &[Kind::Delta], "failed"),
        (true, &[Kind::Status, Kind::Content], "failed"),
        (false, &[], "failed"),
        (false, &[Kind::Status], "failed"),
    ];
    for (is_safe, said, wanted) in cases {
        let doomed = ground.replica().await;
        let (claim, seq) = run_saying(&doomed, is_safe, said).await;
        // What the holder gives back itself follows the same rule.
        let is_released = doomed.store.release(claim.turn, claim.epoch, false).await.unwrap();
        assert_eq!(is_released, wanted == "queued", "{is_safe} {said:?}");
        let claim = if is_released {
            let again = doomed.claim_of(claim.turn).await;
            assert_eq!((again.epoch, again.last_seq), (2, seq));
            doomed.start(&again).await.unwrap();
            again
        } else {
            claim
        };
        ground.lose(doomed.store.replica()).await;
        let closed = judge.store.close_due(&[], 100).await.unwrap();
        let lost = Code::ReplicaLost.as_str();
        assert_eq!(told(&closed), [(claim.turn, wanted, lost)], "{is_safe} {said:?}");
        judge.store.cancel(&[claim.turn], CancelledBy::Client).await.unwrap();
    }
    ground.assert_whole().await;
}

async fn what_a_living_replica_left_overdue_ends_only_when_it_is_named(server: &Server) {
    let ground = server.ground().await;
    let (holder, other) = (ground.replica().await, ground.replica().await);
    let (claim, seq) = holder.running().await;
    let starting = holder.claimed().await;
    ground.lapse(claim.turn).await;
    ground.lapse(starting.turn).await;
    assert_eq!(other.store.outlook().await.unwrap().overdue.len(), 2);
    assert!(other.store.close_due(&[], 100).await.unwrap().is_empty(), "its holder lives");

    // A sign of life in the meantime: named, but not overdue any more.
    assert_eq!(holder.append(&claim, seq, Kind::Delta).await, Written::Done(seq + 1));
    let closed = other.store.close_due(&[claim.turn, starting.turn], 100).await.unwrap();
    assert_eq!(told(&closed), [(starting.turn, "failed", Code::WorkerStartupFailed.as_str())]);
    ground.lapse(claim.turn).await;
    let closed = other.store.close_due(&[claim.turn], 100).await.unwrap();
    assert_eq!(told(&closed), [(claim.turn, "failed", Code::WorkerUnresponsive.as_str())]);
    ground.assert_whole().await;
}

async fn a_cancelled_turn_of_a_lost_replica_ends_as_cancelled(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let (running, _) = doomed.running().await;
    let starting = doomed.claimed().await;
    let asked = judge.store.cancel(&[running.turn, starting.turn], CancelledBy::Interrupt).await.unwrap();
    assert_eq!(asked, [(running.turn, false), (starting.turn, false)]);
    assert_eq!(doomed.start(&starting).await, None, "started after its cancel");
    assert_eq!(judge.store.commands(&[running.turn, starting.turn]).await.unwrap().len(), 2);
    ground.lose(doomed.store.replica()).await;
    assert_eq!(judge.store.close_due(&[], 100).await.unwrap().len(), 2);
    for turn in [running.turn, starting.turn] {
        let (kind, word) = last_word(&judge.store, turn).await;
        assert_eq!((kind, &word["by"]), (Kind::Cancelled, &"interrupt".into()));
    }
    ground.assert_whole().await;
}

fn told(closed: &[Closed]) -> Vec<(TurnId, &str, &str)> {
    closed.iter().map(|closed| (closed.turn, closed.status.as_str(), closed.code.as_str())).collect()
}

/// A running turn that has said these things, with the seq of the last.
async fn run_saying(replica: &Replica, is_safe: bool, said: &[Kind]) -> (Claim, i32) {
    let mut new = fresh(&replica.store);
    if is_safe {
        new.agent = safe_agent();
    }
    replica.store.accept(&new).await.unwrap();
    let claim = replica.claim_of(new.id).await;
    let mut seq = replica.start(&claim).await.unwrap();
    for kind in said {
        assert_eq!(replica.append(&claim, seq, *kind).await, Written::Done(seq + 1));
        seq += 1;
    }
    (claim, seq)
}
