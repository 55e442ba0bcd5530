//! Cancelled turns, and deleted conversations.

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::Connection as _;

use crate::{
    support::{Cluster, OPERATOR, PATIENCE, Turn, eventually, is_alive, kinds},
    workers::{cancelled, goes_on, snapshot, unstarted},
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
    let mut streams = [cluster.stream(0, &turn.id, -1).await, cluster.stream(1, &turn.id, -1).await];
    assert_eq!(cluster.ask(1, Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    for stream in &mut streams {
        cancelled(&stream.until_terminal(PATIENCE).await, "operator");
    }
}

/// Who follows a deleted conversation is cut off, and nobody is told anything of it from that moment on.
pub async fn a_deleted_conversation_is_told_no_more_and_erased(cluster: &Cluster) {
    let first = cluster.post(0, "demo", "/ask do you keep my secret?").await;
    let second = cluster.post_in(1, &first.conversation, "demo", "/echo another secret").await;
    let ask = cluster.until(0, &first, "ask", PATIENCE).await;
    let ask = ask.data["ask_id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.answer(1, &first, &ask, json!("secretly")).await.0, StatusCode::ACCEPTED);
    for turn in [&first, &second] {
        cluster.watch_all(turn).await;
    }
    let path = format!("/v1/conversations/{}", first.conversation);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut followers = Vec::new();
    for i in 0..2 {
        let url = format!("{}{path}/events", cluster.url(i));
        let ask = http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream");
        let mut follower = ask.send().await.unwrap();
        let mut seen = String::new();
        while seen.matches("event: completed").count() < 2 {
            seen.push_str(&String::from_utf8_lossy(&follower.chunk().await.unwrap().unwrap()));
        }
        followers.push(follower);
    }
    assert_eq!(cluster.ask(1, Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    for (i, follower) in followers.iter_mut().enumerate() {
        let end = tokio::time::timeout(PATIENCE, async {
            loop {
                match follower.chunk().await {
                    Ok(Some(_)) => {}
                    end => return end,
                }
            }
        });
        assert!(
            end.await.unwrap().is_err(),
            "the stream on replica {i} ended as if there were no more to come"
        );
        for gone in ["", "/events", "/turns"].map(|rest| format!("{path}{rest}")) {
            assert_eq!(cluster.ask(i, Method::GET, &gone, None).await.0, StatusCode::NOT_FOUND, "{gone}");
        }
        for turn in [&first, &second] {
            for gone in ["", "/events"].map(|rest| format!("/v1/turns/{}{rest}", turn.id)) {
                assert_eq!(cluster.ask(i, Method::GET, &gone, None).await.0, StatusCode::NOT_FOUND, "{gone}");
            }
        }
    }
    let url = cluster.postgres().url();
    let mut conn = sqlx::PgConnection::connect(&url).await.unwrap();
    let ids = [&first, &second].map(|turn| format!("'{}'", turn.id.trim_start_matches("turn_"))).join(", ");
    for (table, key) in
        [("turns", "id"), ("turn_events", "turn_id"), ("commands", "turn_id"), ("not_completed", "turn_id")]
    {
        let count = format!("select count(*) from {table} where {key} in ({ids})");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(&mut conn).await.unwrap();
        assert_eq!(count, 0, "{table}");
    }
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
    let pid = cluster.starting(&turn).await;
    assert_eq!(cluster.cancel(1, &turn).await, StatusCode::ACCEPTED);
    let events = cluster.watch_all(&turn).await;
    cancelled(&events, "client");
    assert_eq!(kinds(&events), unstarted(cluster, "cancelled"));
    eventually("the worker is gone", async || (!is_alive(pid)).then_some(())).await;
}

pub async fn a_running_turn_can_be_cancelled_and_its_worker_lives_on(cluster: &Cluster) {
    cluster.demo_agent("obedient", json!({})).await;
    let turn = cluster.post(1, "obedient", "/slow 100000").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    let worker = cluster.worker_of(&turn).await;
    // Through the replica that does not run it.
    assert_eq!(cluster.cancel(1 - worker.replica, &turn).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "client");
    assert_eq!(cluster.cancel(0, &turn).await, StatusCode::OK, "it has ended already");
    // One that obeyed is kept.
    eventually("the worker is idle", async || {
        (cluster.worker(&worker.listed).await["state"] == "idle").then_some(())
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
