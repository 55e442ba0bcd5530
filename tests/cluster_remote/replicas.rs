//! Replicas that are killed, frozen, drained and cut off under remote workers: the turns go on elsewhere.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    hand::{Hand, complete, delta},
    host::{Host, Plan},
    pair, remote_agent,
    support::{Cluster, PATIENCE, Plan as ClusterPlan, Turn, eventually, said},
    workers::{completed, goes_on},
    workers_in,
};

fn words(count: usize) -> String {
    (1..=count).map(|n| format!("word{n} ")).collect()
}

/// A turn on a host that calls replica 0 first, and has said something.
async fn under_way(cluster: &Cluster, text: &str) -> (Host, Turn) {
    remote_agent(cluster, "far", json!({})).await;
    let host = Host::start(cluster, Plan::demo("far", &[0, 1]));
    let turn = cluster.post(1, "far", text).await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    (host, turn)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_takes_no_remote_turn_with_it() {
    let cluster = pair().await;
    let (host, turn) = under_way(&cluster, "/slow 100").await;
    let process = host.workers();
    cluster.kill(0);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), words(100));
    assert_eq!(events.iter().filter(|event| event.kind == "started").count(), 1);
    goes_on(&cluster, 1, &turn).await;
    assert_eq!(host.workers(), process, "the process has noticed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_takes_no_remote_turn_with_it_and_changes_nothing_later() {
    let cluster = pair().await;
    let (_host, turn) = under_way(&cluster, "/slow 200").await;
    cluster.freeze(0);
    let events = cluster.watch(1, &turn).await;
    assert_eq!(completed(&events), words(200));
    cluster.thaw(0);
    assert_eq!(cluster.watch_all(&turn).await, events);
    goes_on(&cluster, 1, &turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_replica_hands_its_remote_turns_on() {
    let drain = Duration::from_secs(60);
    let cluster = Cluster::with(ClusterPlan { env: workers_in(), drain, ..ClusterPlan::default() }).await;
    let (_host, turn) = under_way(&cluster, "/slow 200").await;
    let began = Instant::now();
    cluster.terminate(0);
    assert!(cluster.wait_exit(0).await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "it waited for a turn that went elsewhere: {took:?}");
    assert_eq!(completed(&cluster.watch_all(&turn).await), words(200));
    goes_on(&cluster, 1, &turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_restarts_costs_no_remote_turn() {
    let cluster = pair().await;
    let (_host, turn) = under_way(&cluster, "/slow 120").await;
    let mut stream = cluster.stream(1, &turn.id, -1).await;
    cluster.postgres().restart(lastword::cli::postgres::Mode::Fast).unwrap();
    stream.until_terminal(PATIENCE).await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), words(120));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_and_a_cancel_find_a_turn_that_moved() {
    let cluster = pair().await;
    remote_agent(&cluster, "far", json!({})).await;
    let _host = Host::start(&cluster, Plan::demo("far", &[0, 1]));
    let asking = cluster.post(0, "far", "/ask well?").await;
    let ask = cluster.until(0, &asking, "ask", PATIENCE).await;
    cluster.kill(0);
    let ask_id = ask.data["ask_id"].as_str().unwrap();
    assert!(cluster.answer(1, &asking, ask_id, json!("fine")).await.0.is_success());
    assert_eq!(completed(&cluster.watch_all(&asking).await), "You answered: fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_nobody_calls_for_ends_with_its_replica() {
    let cluster = pair().await;
    remote_agent(&cluster, "lonely", json!({})).await;
    let hand = Hand::register(&cluster, 0, "lonely").await;
    let turn = cluster.post(1, "lonely", "x").await;
    let offer = hand.take(0).await;
    assert!(hand.say(0, &offer, 1, &[delta("a")]).await.0.is_success());
    cluster.kill(0);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(events.last().unwrap().code(), "replica_lost");
    assert_eq!(said(&events), "a");
    assert_eq!(hand.say(1, &offer, 2, &[complete()]).await.0, 410);
    eventually("its worker has ended", async || {
        let worker = cluster.worker(&hand.id).await;
        (worker["state"] == "ended").then_some(())
    })
    .await;
}
