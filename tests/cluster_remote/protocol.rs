//! The HTTP protocol of remote workers, used correctly and misused.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    hand::{Hand, complete, delta},
    pair, remote_agent,
    support::{Cluster, PATIENCE, eventually},
    workers::{cancelled, completed, failed},
};

fn code(answer: &Value) -> &str {
    answer["code"].as_str().unwrap_or_else(|| panic!("no problem: {answer}"))
}

pub async fn messages_count_once_and_in_order(cluster: &Cluster) {
    remote_agent(cluster, "counting", json!({})).await;
    let hand = Hand::register(cluster, 0, "counting").await;
    let turn = cluster.post(0, "counting", "x").await;
    let offer = hand.take(0).await;
    assert_eq!(offer.turn, turn.id);
    assert_eq!((offer.epoch, &offer.json["ordinal"]), (1, &json!(1)));
    assert_eq!(offer.json["turn"]["input"]["text"], "x");
    let (status, answer) = hand.say(0, &offer, 1, &[delta("a"), delta("b")]).await;
    assert_eq!((status, &answer["acknowledged"]), (StatusCode::OK, &json!(2)));
    assert_eq!(hand.say(0, &offer, 1, &[delta("a"), delta("b")]).await.0, StatusCode::NO_CONTENT);
    assert_eq!(hand.say(0, &offer, 2, &[delta("b")]).await.0, StatusCode::NO_CONTENT);
    // Some of it new; and what would be nothing on a pipe has a number here.
    let (status, answer) = hand.say(0, &offer, 2, &[delta("b"), json!({"type": "beat"}), delta("c")]).await;
    assert_eq!((status, &answer["acknowledged"]), (StatusCode::OK, &json!(4)));
    assert_eq!(hand.say(0, &offer, 5, &[complete()]).await.0, StatusCode::OK);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "abc");
    assert_eq!(events.iter().filter(|event| event.kind == "custom").count(), 1);
    // The end again, whose answer may have been lost.
    let (status, answer) = hand.say(0, &offer, 5, &[complete()]).await;
    assert_eq!((status, code(&answer)), (StatusCode::GONE, "turn_ended"));
}

pub async fn a_gap_is_named(cluster: &Cluster) {
    remote_agent(cluster, "gapping", json!({})).await;
    let hand = Hand::register(cluster, 1, "gapping").await;
    let turn = cluster.post(0, "gapping", "x").await;
    let offer = hand.take(1).await;
    let (status, answer) = hand.say(1, &offer, 2, &[delta("b")]).await;
    assert_eq!((status, code(&answer)), (StatusCode::CONFLICT, "messages_gap"));
    assert_eq!(answer["expected"], 1);
    assert_eq!(hand.say(1, &offer, 1, &[delta("a")]).await.0, StatusCode::OK);
    // At the other replica too, which has seen nothing of it.
    let (status, answer) = hand.say(0, &offer, 4, &[delta("d")]).await;
    assert_eq!((status, &answer["expected"]), (StatusCode::CONFLICT, &json!(2)), "{answer}");
    assert_eq!(hand.say(0, &offer, 2, &[complete()]).await.0, StatusCode::OK);
    assert_eq!(completed(&cluster.watch_all(&turn).await), "a");
}

pub async fn a_stale_attempt_and_an_ended_turn_are_told_apart(cluster: &Cluster) {
    remote_agent(cluster, "attempts", json!({"retry": "safe"})).await;
    let hand = Hand::register(cluster, 0, "attempts").await;
    let turn = cluster.post(0, "attempts", "x").await;
    let first = hand.take(0).await;
    let gone = json!({"type": "gone", "code": "worker_exited", "message": "It fell over."});
    hand.say(0, &first, 1, &[gone]).await;
    let second = hand.take(0).await;
    assert_eq!((second.turn.as_str(), second.epoch), (turn.id.as_str(), 2));
    for i in [0, 1] {
        let (status, answer) = hand.say(i, &first, 1, &[delta("late")]).await;
        assert_eq!((status, code(&answer)), (StatusCode::FORBIDDEN, "epoch_stale"), "{i}");
    }
    let beat = hand.beat(0, &[&first, &second], &[], 0).await;
    assert_eq!(beat["over"], json!([{"turn_id": turn.id, "epoch": 1, "code": "epoch_stale"}]));
    assert_eq!(hand.say(0, &second, 1, &[delta("a"), complete()]).await.0, StatusCode::OK);
    assert_eq!(completed(&cluster.watch_all(&turn).await), "a");
    for (i, offer) in [(0, &first), (1, &second)] {
        let (status, answer) = hand.say(i, offer, 1, &[delta("late")]).await;
        assert_eq!((status, code(&answer)), (StatusCode::GONE, "turn_ended"), "{i}");
    }
    let beat = hand.beat(0, &[&second], &[], 0).await;
    assert_eq!(beat["over"][0]["code"], "turn_ended");
}

pub async fn a_turn_opens_to_its_own_token_only(cluster: &Cluster) {
    remote_agent(cluster, "tokens", json!({})).await;
    let hand = Hand::register(cluster, 0, "tokens").await;
    let (turn, other) = (cluster.post(0, "tokens", "x").await, cluster.post(0, "tokens", "y").await);
    let (offer, another) = (hand.take(0).await, hand.take(0).await);
    for token in [another.token.as_str(), crate::WORKERS, crate::support::OPERATOR, "x"] {
        for i in [0, 1] {
            let (status, answer) = hand.say_with(i, &offer, token, 1, &[delta("forged")]).await;
            assert_eq!((status, code(&answer)), (StatusCode::UNAUTHORIZED, "unauthorized"), "{token}");
        }
    }
    // Another worker names it in vain.
    let stranger = Hand::register(cluster, 1, "tokens").await;
    let beat = stranger.beat(1, &[&offer], &[], 0).await;
    assert_eq!(beat["over"][0]["code"], "epoch_stale");
    for offer in [&offer, &another] {
        assert_eq!(hand.say(0, offer, 1, &[delta("mine"), complete()]).await.0, StatusCode::OK);
    }
    for turn in [&turn, &other] {
        assert_eq!(completed(&cluster.watch_all(turn).await), "mine");
    }
}

pub async fn an_offer_that_nobody_takes_goes_to_another(cluster: &Cluster) {
    remote_agent(cluster, "untaken", json!({})).await;
    let (slow, quick) =
        (Hand::register(cluster, 0, "untaken").await, Hand::register(cluster, 1, "untaken").await);
    let turn = cluster.post(0, "untaken", "x").await;
    let untaken = slow.offer(0).await;
    assert!(quick.is_offered_nothing(1).await, "it is the other's for now");
    let offer = quick.take(1).await;
    assert_eq!((offer.turn.as_str(), offer.epoch), (turn.id.as_str(), 2));
    let (status, answer) = slow.say(0, &untaken, 1, &[]).await;
    assert_eq!((status, code(&answer)), (StatusCode::FORBIDDEN, "epoch_stale"));
    assert_eq!(quick.say(1, &offer, 1, &[delta("a"), complete()]).await.0, StatusCode::OK);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "a");
    assert_eq!(events.iter().filter(|event| event.kind == "started").count(), 1, "only one has begun");
}

pub async fn a_worker_that_falls_silent_is_lost(cluster: &Cluster) {
    remote_agent(cluster, "silent", json!({})).await;
    let hand = Hand::register(cluster, 0, "silent").await;
    let turn = cluster.post(0, "silent", "x").await;
    let offer = hand.take(0).await;
    let since = Instant::now();
    failed(&cluster.watch_all(&turn).await, "worker_lost", "connection to the worker");
    let took = since.elapsed();
    assert!(took > Duration::from_secs(8), "nothing broke off: it is given time, not {took:?}");
    assert_eq!(hand.say(1, &offer, 1, &[delta("late")]).await.0, StatusCode::GONE);
}

pub async fn a_worker_whose_beat_breaks_off_is_lost_soon(cluster: &Cluster) {
    remote_agent(cluster, "broken", json!({})).await;
    let hand = Hand::register(cluster, 0, "broken").await;
    let turn = cluster.post(0, "broken", "x").await;
    let offer = hand.take(0).await;
    // One that comes again is none.
    for _ in 0..3 {
        hand.break_off(0, &offer).await;
        hand.beat(0, &[&offer], &[], 500).await;
    }
    assert_eq!(hand.say(0, &offer, 1, &[delta("a")]).await.0, StatusCode::OK);
    hand.break_off(0, &offer).await;
    let since = Instant::now();
    failed(&cluster.watch_all(&turn).await, "worker_lost", "connection to the worker");
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
}

pub async fn a_worker_that_dies_between_two_beats_is_lost_soon(cluster: &Cluster) {
    remote_agent(cluster, "between", json!({})).await;
    let hand = Hand::register(cluster, 0, "between").await;
    let turn = cluster.post(0, "between", "x").await;
    let offer = hand.take(0).await;
    for _ in 0..2 {
        hand.beat(0, &[&offer], &[], 0).await;
    }
    // With it goes its connection, whose last request was answered.
    drop(hand);
    let since = Instant::now();
    failed(&cluster.watch_all(&turn).await, "worker_lost", "connection to the worker");
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
}

pub async fn each_change_of_replica_moves_the_turn_and_loses_nothing(cluster: &Cluster) {
    remote_agent(cluster, "wandering", json!({})).await;
    let hand = Hand::register(cluster, 0, "wandering").await;
    let turn = cluster.post(0, "wandering", "x").await;
    let offer = hand.take(0).await;
    let mut said = String::new();
    for n in 1..=20 {
        let (at, text) = (n as usize % 2, format!("{n} "));
        said.push_str(&text);
        let mut tries = 0;
        let answer = eventually("the replica takes it over", async || {
            tries += 1;
            let (status, _) = hand.say(at, &offer, n, &[delta(&text)]).await;
            (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
        });
        let status = answer.await;
        // A try that was told to come again may have counted.
        let is_repeat = status == StatusCode::NO_CONTENT && tries > 1;
        assert!(status == StatusCode::OK || is_repeat, "{n}: {status} at try {tries}");
    }
    let end = eventually("the end is taken", async || {
        let (status, _) = hand.say(1, &offer, 21, &[complete()]).await;
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
    });
    let status = end.await;
    assert!([StatusCode::OK, StatusCode::NO_CONTENT].contains(&status), "{status}");
    assert_eq!(completed(&cluster.watch_all(&turn).await), said);
}

pub async fn what_the_former_holder_was_to_tell_is_told_by_the_next(cluster: &Cluster) {
    remote_agent(cluster, "forgetful", json!({})).await;
    let hand = Hand::register(cluster, 0, "forgetful").await;
    let turn = cluster.post(0, "forgetful", "x").await;
    let offer = hand.take(0).await;
    let ask = json!({"type": "ask", "ask_id": "q", "prompt": "?"});
    assert_eq!(hand.say(0, &offer, 1, &[ask]).await.0, StatusCode::OK);
    assert_eq!(cluster.answer(1, &turn, "q", json!("yes")).await.0, StatusCode::ACCEPTED);
    cluster.until(1, &turn, "answer", PATIENCE).await;
    // It never heard of the answer from there.
    hand.register_again(1, "forgetful").await;
    let told = eventually("the answer is told", async || {
        let beat = hand.beat(1, &[&offer], &[], 200).await;
        beat["orders"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&told["key"], &told["order"]["answer"]), (&json!("answer:q"), &json!("yes")), "{told}");
    assert_eq!(cluster.cancel(0, &turn).await, StatusCode::ACCEPTED);
    let told = eventually("the cancel is told", async || {
        let beat = hand.beat(1, &[&offer], &["answer:q"], 200).await;
        beat["orders"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&told["key"], &told["order"]["type"]), (&json!("cancel"), &json!("cancel")), "{told}");
    // And again at the first one, after that.
    hand.register_again(0, "forgetful").await;
    eventually("the cancel is told there too", async || {
        let beat = hand.beat(0, &[&offer], &["answer:q"], 200).await;
        beat["orders"].as_array().unwrap().iter().any(|order| order["key"] == "cancel").then_some(())
    })
    .await;
    assert_eq!(hand.say(0, &offer, 2, &[json!({"type": "cancelled"})]).await.0, StatusCode::OK);
    cancelled(&cluster.watch_all(&turn).await, "client");
}

pub async fn a_worker_that_was_told_to_stop_may_say_so_at_another_replica(cluster: &Cluster) {
    remote_agent(cluster, "obedient", json!({})).await;
    let hand = Hand::register(cluster, 0, "obedient").await;
    let turn = cluster.post(0, "obedient", "x").await;
    let offer = hand.take(0).await;
    assert_eq!(cluster.cancel(0, &turn).await, StatusCode::ACCEPTED);
    eventually("the cancel is told", async || {
        let beat = hand.beat(0, &[&offer], &[], 200).await;
        beat["orders"].as_array().unwrap().iter().any(|order| order["key"] == "cancel").then_some(())
    })
    .await;
    // Before that one has read what was ordered.
    let stopped = [json!({"type": "cancelled"})];
    eventually("the replica takes it over", async || {
        let (status, _) = hand.say(1, &offer, 1, &stopped).await;
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    cancelled(&cluster.watch_all(&turn).await, "client");
}

/// What two replicas ask in as many seconds while nothing happens, and some more.
const IDLE_MAX: i64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_keeps_no_replica_busy() {
    let cluster = pair().await;
    remote_agent(&cluster, "far", json!({})).await;
    let hand = Hand::register(&cluster, 0, "far").await;
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let mut commits = async || {
        let count = "select xact_commit from pg_stat_database where datname = current_database()";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut conn).await.unwrap()
    };
    let before = commits().await;
    for _ in 0..3 {
        assert!(hand.is_offered_nothing(0).await);
    }
    let count = commits().await - before;
    assert!(count < IDLE_MAX, "{count} transactions while one worker waited");
}

pub async fn a_character_cut_in_halves_arrives_whole_through_two_replicas(cluster: &Cluster) {
    remote_agent(cluster, "halves", json!({})).await;
    let hand = Hand::register(cluster, 0, "halves").await;
    let turn = cluster.post(0, "halves", "x").await;
    let offer = hand.take(0).await;
    let say = async |at: usize, n: u64, lines: &str| {
        eventually("the replica takes it over", async || {
            let (status, _) = hand.say_text(at, &offer, n, lines).await;
            (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
        })
        .await
    };
    // Marks, line ends and blank lines of a platform have no number.
    let lines = "\u{feff}\r\n\u{feff}{\"type\":\"delta\",\"text\":\"a\\ud83c\"}\r\n\r\n";
    assert_eq!(say(0, 1, lines).await, StatusCode::OK);
    // The other replica knows the first half from the log alone.
    let status = say(1, 2, "{\"type\":\"delta\",\"text\":\"\\udf89b\\ud83c\"}\n").await;
    assert!([StatusCode::OK, StatusCode::NO_CONTENT].contains(&status), "{status}");
    let status = say(0, 3, "{\"type\":\"complete\"}\n").await;
    assert!([StatusCode::OK, StatusCode::NO_CONTENT].contains(&status), "{status}");
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "a🎉b\u{fffd}");
    assert_eq!(events.last().unwrap().text(), "a🎉b\u{fffd}");
}
