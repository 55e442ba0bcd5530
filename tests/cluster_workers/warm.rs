//! Workers that serve one turn after another, and what a conversation keeps when they do not.

use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    support::{Cluster, PATIENCE, signal},
    workers::{completed, failed, goes_on, shell_with, snapshot},
};

/// What `/recall` must show of the turns before it.
fn recalled(turns: &[&str]) -> String {
    let lines = turns
        .iter()
        .flat_map(|text| [format!("user: {text}"), format!("assistant: Hello! You said: {text}")]);
    lines.enumerate().map(|(n, line)| format!("{}. {line}", n + 1)).collect::<Vec<_>>().join("\n")
}

pub async fn a_question_is_answered_through_the_other_replica(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/ask Tea or coffee?").await;
    let ask = cluster.until(1, &turn, "ask", PATIENCE).await;
    assert_eq!(ask.data["prompt"], "Tea or coffee?");
    let (ask_id, other) = (ask.data["ask_id"].as_str().unwrap(), 1 - cluster.worker_of(&turn).await.replica);
    assert_eq!(cluster.answer(other, &turn, ask_id, json!("tea")).await.0, StatusCode::ACCEPTED);
    let (status, problem) = cluster.answer(1 - other, &turn, ask_id, json!("coffee")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("ask_answered")), "{problem}");
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "You answered: tea");
    snapshot("ask_and_answer", &events);
}

pub async fn a_crash_names_the_turn_that_runs(cluster: &Cluster) {
    let (first, second) = cluster.post_twice("demo", "hello", "/crash 4").await;
    let before = cluster.watch_all(&first).await;
    let events = cluster.watch_all(&second).await;
    failed(&events, "worker_exited", "exit code 4");
    assert_eq!(cluster.events(0, &first).await, before, "the first turn has changed");
    goes_on(cluster, 1, &second).await;
}

pub async fn an_idle_workers_death_is_nobodys_news(cluster: &Cluster) {
    let first = cluster.post(0, "demo", "one").await;
    let events = cluster.watch_all(&first).await;
    let worker = cluster.worker_of(&first).await;
    signal(worker.pid, Signal::SIGKILL);
    // At once: the turn must not be handed to the dead.
    let second = cluster.post_in(worker.replica, &first.conversation, "demo", "/recall").await;
    assert_eq!(completed(&cluster.watch_all(&second).await), recalled(&["one"]));
    assert_ne!(cluster.worker_of(&second).await.id, worker.id);
    assert_eq!(cluster.events(1, &first).await, events);
}

pub async fn a_conversation_goes_on_through_either_replica(cluster: &Cluster) {
    let first = cluster.post(1, "demo", "one").await;
    completed(&cluster.watch_all(&first).await);
    let second = cluster.post_in(0, &first.conversation, "demo", "two").await;
    completed(&cluster.watch_all(&second).await);
    let worker = cluster.worker_of(&second).await;
    signal(worker.pid, Signal::SIGKILL);
    cluster.ended(&worker.id).await;
    let third = cluster.post_in(1 - worker.replica, &first.conversation, "demo", "/recall").await;
    assert_eq!(completed(&cluster.watch_all(&third).await), recalled(&["one", "two"]));
}

pub async fn an_idle_worker_is_reaped_and_its_conversation_goes_on(cluster: &Cluster) {
    cluster.demo_agent("brief", json!({"idle_ttl": "500ms"})).await;
    let first = cluster.post(1, "brief", "one").await;
    let events = cluster.watch_all(&first).await;
    let ended = cluster.ended(&cluster.worker_of(&first).await.id).await;
    assert_eq!(ended["exit"], "exit code 0", "it was asked, not killed: {ended}");
    let second = cluster.post_in(0, &first.conversation, "brief", "/recall").await;
    assert_eq!(completed(&cluster.watch_all(&second).await), recalled(&["one"]));
    assert_eq!(cluster.events(0, &first).await, events);
}

pub async fn idle_reaping_never_hits_a_live_turn(cluster: &Cluster) {
    let quiet = r#"
say '{"type":"status","state":"thinking"}'
sleep 3
say '{"type":"delta","text":"thought"}'
say '{"type":"complete"}'"#;
    cluster.put_agent("quiet", shell_with(quiet, json!({"idle_ttl": "500ms"}))).await;
    let turn = cluster.post(0, "quiet", "hello").await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), "thought");
}

pub async fn a_fresh_worker_is_told_no_more_than_the_agent_allows(cluster: &Cluster) {
    cluster.demo_agent("forgetful", json!({"idle_ttl": "500ms", "history": {"turns": 1}})).await;
    let first = cluster.post(0, "forgetful", "one").await;
    completed(&cluster.watch_all(&first).await);
    let second = cluster.post_in(1, &first.conversation, "forgetful", "two").await;
    completed(&cluster.watch_all(&second).await);
    cluster.ended(&cluster.worker_of(&second).await.id).await;
    let third = cluster.post_in(0, &first.conversation, "forgetful", "/recall").await;
    assert_eq!(completed(&cluster.watch_all(&third).await), recalled(&["two"]));
}
