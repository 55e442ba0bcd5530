//! Turns and workers that are stopped by a client or an operator.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    answer_all, asking, share,
    support::Cluster,
    workers::{cancelled, completed},
};

pub async fn a_cancel_stops_one_turn_alone(cluster: &Cluster) {
    share(cluster, "obedient", json!({})).await;
    let asking = asking(cluster, "obedient", 3).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    assert_eq!(cluster.cancel(0, &asking[0].0).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&asking[0].0).await, "client");
    // One that obeyed is kept, and trusted.
    let next = cluster.post(0, "obedient", "/echo next").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "next");
    assert_eq!(cluster.worker_of(&next).await, worker);
    answer_all(cluster, &asking[1..]).await;
}

pub async fn an_operator_stops_all_turns_of_a_worker(cluster: &Cluster) {
    share(cluster, "stopped", json!({})).await;
    let asking = asking(cluster, "stopped", 4).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let path = format!("/v1/workers/{}/stop", worker.id);
    assert_eq!(cluster.ask(0, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    for (turn, _) in &asking {
        cancelled(&cluster.watch_all(turn).await, "operator");
    }
    let ended = cluster.ended(&worker.id).await;
    assert_eq!(ended["exit"], "exit code 0", "it was asked, not killed: {ended}");
    let next = cluster.post(0, "stopped", "/echo next").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "next");
}

pub async fn a_stopped_idle_worker_tells_nobody(cluster: &Cluster) {
    share(cluster, "resting", json!({})).await;
    let turn = cluster.post(0, "resting", "/echo one").await;
    let events = cluster.watch_all(&turn).await;
    let worker = cluster.worker_of(&turn).await;
    let path = format!("/v1/workers/{}/stop", worker.id);
    assert_eq!(cluster.ask(0, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    assert_eq!(cluster.ended(&worker.id).await["exit"], "exit code 0");
    assert_eq!(cluster.watch_all(&turn).await, events);
}
