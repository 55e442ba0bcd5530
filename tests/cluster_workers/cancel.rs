//! Turns that somebody stops.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    support::{Cluster, PATIENCE, Turn, eventually, is_alive, kinds},
    workers::{cancelled, goes_on, snapshot},
};

/// A turn that goes on until it is stopped, and has begun to speak.
async fn endless(cluster: &Cluster, i: usize) -> Turn {
    let turn = cluster.post(i, "demo", "/slow 100000").await;
    cluster.until(i, &turn, "delta", PATIENCE).await;
    turn
}

pub async fn a_deleted_conversation_cancels_its_turn(cluster: &Cluster) {
    let turn = endless(cluster, 0).await;
    let path = format!("/v1/conversations/{}", turn.conversation);
    assert_eq!(cluster.ask(1, Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    cancelled(&cluster.watch_all(&turn).await, "operator");
}

pub async fn a_queued_turn_can_be_cancelled(cluster: &Cluster) {
    let first = endless(cluster, 1).await;
    let second = cluster.post_in(0, &first.conversation, "demo", "hello").await;
    assert_eq!(cluster.cancel(1, &second).await, StatusCode::ACCEPTED);
    let events = cluster.watch_all(&second).await;
    cancelled(&events, "client");
    snapshot("cancelled_while_queued", &events);
    assert_eq!(cluster.get(0, &format!("/v1/turns/{}", first.id)).await["status"], "running");
    cluster.cancel(0, &first).await;
    cancelled(&cluster.watch_all(&first).await, "client");
    goes_on(cluster, 1, &first).await;
}

pub async fn a_starting_turn_can_be_cancelled(cluster: &Cluster) {
    cluster.demo_agent("late", json!({"env": {"DEMO_STARTUP": "slow:50000"}})).await;
    let turn = cluster.post(0, "late", "hello").await;
    let pid = eventually("its worker starts", async || {
        let workers = cluster.workers().await;
        let worker = workers.iter().find(|worker| worker["conversation_id"] == turn.conversation.as_str());
        worker.filter(|worker| worker["state"] == "starting").and_then(|worker| worker["pid"].as_i64())
    })
    .await;
    assert_eq!(cluster.cancel(1, &turn).await, StatusCode::ACCEPTED);
    let events = cluster.watch_all(&turn).await;
    cancelled(&events, "client");
    assert_eq!(kinds(&events), ["accepted", "cancelled"]);
    let pid = i32::try_from(pid).unwrap();
    eventually("the worker is gone", async || (!is_alive(pid)).then_some(())).await;
}

pub async fn a_running_turn_can_be_cancelled_and_its_worker_lives_on(cluster: &Cluster) {
    let turn = endless(cluster, 1).await;
    let worker = cluster.worker_of(&turn).await;
    // Through the replica that does not run it.
    assert_eq!(cluster.cancel(1 - worker.replica, &turn).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "client");
    assert_eq!(cluster.cancel(0, &turn).await, StatusCode::OK, "it has ended already");
    // One that obeyed is kept.
    eventually("the worker is idle", async || {
        (cluster.worker(&worker.id).await["state"] == "idle").then_some(())
    })
    .await;
    assert!(is_alive(worker.pid));
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_worker_that_ignores_a_cancel_is_ended(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/freeze").await;
    let worker = cluster.worker_of(&turn).await;
    assert_eq!(cluster.cancel(1, &turn).await, StatusCode::ACCEPTED);
    let events = cluster.watch_all(&turn).await;
    cancelled(&events, "client");
    cluster.ended(&worker.id).await;
    assert!(!is_alive(worker.pid), "it lives on without authority");
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_stopped_worker_cancels_its_turn(cluster: &Cluster) {
    let turn = endless(cluster, 0).await;
    let worker = cluster.worker_of(&turn).await;
    let path = format!("/v1/workers/{}/stop", worker.id);
    assert_eq!(cluster.ask(1 - worker.replica, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "operator");
    cluster.ended(&worker.id).await;
    assert_eq!(cluster.ask(0, Method::POST, &path, None).await.0, StatusCode::OK, "it has ended already");
    goes_on(cluster, 1, &turn).await;
}

pub async fn a_stopped_idle_worker_tells_nobody(cluster: &Cluster) {
    let turn = cluster.post(1, "demo", "hello").await;
    let events = cluster.watch_all(&turn).await;
    let worker = cluster.worker_of(&turn).await;
    let path = format!("/v1/workers/{}/stop", worker.id);
    assert_eq!(cluster.ask(1 - worker.replica, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    let ended = cluster.ended(&worker.id).await;
    assert_eq!(ended["exit"], "exit code 0", "it was asked, not killed: {ended}");
    assert_eq!(cluster.events(0, &turn).await, events);
    goes_on(cluster, 0, &turn).await;
}
