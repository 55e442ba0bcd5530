//! Bulk fixtures of measurements keep the invariants, and their counts are right.

use std::time::Duration;

use lastword::store::fixtures::ParkedTurns;

use crate::ground::{Server, until};

const CONVERSATIONS: usize = 20;
const TURNS_EACH: usize = 3;

#[tokio::test]
async fn a_mass_of_turns_waits_until_it_is_let_go_and_then_runs_in_its_lines() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let new = replica.accept().await;
    let mass = ParkedTurns {
        agent: &new.agent.name,
        revision: new.agent.revision,
        text: "hello",
        conversations: CONVERSATIONS,
        turns_each: TURNS_EACH,
    };
    let turns = replica.store.park(mass).await.unwrap();
    assert_eq!(turns.len(), CONVERSATIONS * TURNS_EACH);
    assert_eq!(replica.claim(100).await.len(), 1, "only what was accepted by a door");
    ground.assert_whole().await;

    replica.store.unpark().await.unwrap();
    let heads = replica.claim(100).await;
    assert_eq!(heads.len(), CONVERSATIONS, "one of each line");
    for claim in &heads {
        let base = replica.start(claim).await.unwrap();
        replica.finish(claim, base).await;
    }
    let weight = replica.store.weigh(&turns).await.unwrap();
    assert_eq!(weight.completed, CONVERSATIONS as i64);
    assert!(weight.finished_at.is_some() && weight.bytes > 0);
    assert_eq!(replica.claim(100).await.len(), CONVERSATIONS, "the next of each line");
    ground.assert_whole().await;
}

#[tokio::test]
async fn parked_turns_can_be_removed_as_if_they_had_never_been() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    let mass = ParkedTurns { agent: "demo", revision: 1, text: "hello", conversations: 5, turns_each: 1 };
    store.park(mass).await.unwrap();
    assert!(!store.is_busy().await.unwrap(), "nobody waits for them");
    store.remove_parked().await.unwrap();
    let left =
        "(select count(*) from turns) + (select count(*) from inflight) + (select count(*) from turn_events)";
    assert_eq!(ground.ask(left).await, "0");
}

#[tokio::test]
async fn a_history_is_as_large_as_asked_for_and_keeps_the_invariants() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    let mut told = 0;
    store.make_history(1003, 10, None, |made| told = made.events).await.unwrap();
    assert_eq!(told, 10_030);
    assert_eq!(ground.ask("select count(*) from turns where status = 'completed'").await, "1003");
    assert_eq!(ground.ask("select count(*) from turn_events").await, "10030");
    assert_eq!(ground.ask("select count(distinct tableoid) from turn_events").await, "20", "a day each");
    ground.assert_whole().await;
}

#[tokio::test]
async fn a_history_of_a_span_lies_evenly_in_it() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    let hour = Duration::from_secs(3600);
    store.make_history(1000, 4, Some(hour), |_| {}).await.unwrap();
    let within = |minutes: u32| {
        format!("select count(*) from turns where id >= lw_first_id(now() - interval '{minutes} min')")
    };
    assert_eq!(ground.ask(&within(61)).await, "1000");
    let half: i64 = ground.ask(&within(30)).await.parse().unwrap();
    assert!((480..=520).contains(&half), "{half} of 1000 in the last half hour");
    assert_eq!(ground.ask("select count(*) from turns where finished_at > now()").await, "0");
    assert_eq!(ground.ask("select count(*) from turn_events").await, "4000");
    ground.assert_whole().await;
}

#[tokio::test]
async fn what_was_written_is_counted_and_a_held_transaction_is_seen() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let mut gauges = replica.store.gauges().await.unwrap();
    let before = gauges.tally().await.unwrap();
    replica.accept().await;
    let counted = gauges.tally().await.unwrap().since(before);
    // Of the whole server: an autovacuum may come in between.
    assert!(counted.writes >= 1, "an acceptance is a commit");
    assert!(counted.wal_bytes > 500, "{counted:?}");
    assert_eq!(counted.statements, None, "this Postgres was not asked to count them");

    let held = replica.store.hold_transaction().await.unwrap();
    let open = "select count(*) from pg_stat_activity where state = 'idle in transaction' and backend_xmin is not null";
    assert_eq!(ground.ask(open).await, "1");
    drop(held);
    until("it is gone", async || (ground.ask(open).await == "0").then_some(())).await;
}

#[tokio::test]
async fn limits_are_lengths_of_time_and_their_tables_can_be_emptied() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let mut limits = ground.open().limits().await.unwrap();
    for _ in 0..2 {
        assert!(!limits.round_trip().await.unwrap().is_zero());
        assert!(!limits.commit().await.unwrap().is_zero());
        assert!(!limits.wake_up().await.unwrap().is_zero());
        assert!(!limits.insert_rows(100).await.unwrap().is_zero());
        assert_eq!(ground.ask("select count(*) from lastword_limits.rows").await, "100");
        limits.clear().await.unwrap();
        assert_eq!(ground.ask("select count(*) from lastword_limits.rows").await, "0");
    }
}
