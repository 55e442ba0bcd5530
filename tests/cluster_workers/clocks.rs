//! The clocks: each expires with its own code, and none early.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    support::{Cluster, PATIENCE, is_alive, kinds, signal},
    workers::{cancelled, completed, failed, goes_on, shell_with, snapshot},
};

pub async fn beats_are_no_progress(cluster: &Cluster) {
    cluster.demo_agent("beating", json!({"timeouts": {"progress": "1s"}})).await;
    let turn = cluster.post(0, "beating", "/hang").await;
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, "worker_unresponsive", "stopped making progress");
    assert!(error["last_progress_at"].is_null(), "it never made any: {error}");
    snapshot("unresponsive", &events);
    cluster.demo_agent("beating", json!({})).await;
    goes_on(cluster, 1, &turn).await;
}

pub async fn a_stopped_process_is_noticed_and_writes_nothing_later(cluster: &Cluster) {
    cluster.demo_agent("stopped", json!({"timeouts": {"progress": "3s"}})).await;
    let turn = cluster.post(1, "stopped", "/slow 100000").await;
    cluster.until(0, &turn, "delta", PATIENCE).await;
    let worker = cluster.worker_of(&turn).await;
    signal(worker.pid, Signal::SIGSTOP);
    let events = cluster.watch_all(&turn).await;
    failed(&events, "worker_unresponsive", "stopped making progress");
    if is_alive(worker.pid) {
        signal(worker.pid, Signal::SIGCONT);
    }
    cluster.ended(&worker.id).await;
    assert_eq!(cluster.events(0, &turn).await, events, "it wrote after its turn's end");
    cluster.demo_agent("stopped", json!({})).await;
    goes_on(cluster, 0, &turn).await;
}

pub async fn frequent_events_keep_the_progress_clock_wound(cluster: &Cluster) {
    cluster.demo_agent("steady", json!({"timeouts": {"progress": "4s"}})).await;
    let turn = cluster.post(1, "steady", "/slow 80").await;
    assert!(completed(&cluster.watch_all(&turn).await).ends_with("word80 "));
}

pub async fn an_announced_budget_extends_the_progress_clock(cluster: &Cluster) {
    let long_call = r#"
say '{"type":"status","state":"searching","waiting_on":"tool:search","budget_s":60}'
sleep 5
say '{"type":"delta","text":"found"}'
say '{"type":"complete"}'"#;
    let impatient = json!({"timeouts": {"progress": "2s"}});
    cluster.put_agent("long-call", shell_with(long_call, impatient.clone())).await;
    let turn = cluster.post(0, "long-call", "hello").await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), "found");

    // The same call without the announcement.
    let silent = long_call.replace(r#","budget_s":60"#, "");
    cluster.put_agent("silent-call", shell_with(&silent, impatient)).await;
    let turn = cluster.post(1, "silent-call", "hello").await;
    failed(&cluster.watch_all(&turn).await, "worker_unresponsive", "stopped making progress");
}

pub async fn beats_do_not_outlast_an_announced_budget(cluster: &Cluster) {
    let wedged = r#"
say '{"type":"status","state":"searching","budget_s":2}'
while :; do say '{"type":"beat"}'; sleep 0.2; done"#;
    cluster.put_agent("wedged", shell_with(wedged, json!({"timeouts": {"progress": "1s"}}))).await;
    let turn = cluster.post(1, "wedged", "hello").await;
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, "worker_unresponsive", "stopped making progress");
    assert!(error["last_progress_at"].is_string(), "its status was progress: {error}");
    assert_eq!(kinds(&events), ["accepted", "started", "status", "failed"]);
}

pub async fn the_cap_ends_a_turn_that_goes_on_and_on(cluster: &Cluster) {
    cluster.demo_agent("capped", json!({"timeouts": {"cap": "3s"}})).await;
    let turn = cluster.post(0, "capped", "/slow 100000").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, "turn_timeout", "took longer than this agent allows");
    cluster.demo_agent("capped", json!({})).await;
    goes_on(cluster, 1, &turn).await;
}

pub async fn a_question_that_nobody_answers_ends_its_turn(cluster: &Cluster) {
    cluster.demo_agent("asking", json!({"timeouts": {"answer": "1s"}})).await;
    let turn = cluster.post(1, "asking", "/ask Shall I?").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, "answer_timeout", "question was not answered in time");
    assert_eq!(kinds(&events), ["accepted", "started", "ask", "failed"]);
    goes_on(cluster, 0, &turn).await;
}

/// On a cluster whose replicas run one turn each.
pub async fn a_turn_that_nobody_takes_in_time_is_told_so(cluster: &Cluster) {
    cluster.demo_agent("hurried", json!({"timeouts": {"queue": "1s"}})).await;
    let busy = [cluster.post(0, "demo", "/slow 100000").await, cluster.post(1, "demo", "/slow 100000").await];
    for turn in &busy {
        cluster.until(0, turn, "delta", PATIENCE).await;
    }
    let turn = cluster.post(0, "hurried", "hello").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, "queue_timeout", "No worker was free in time");
    snapshot("queue_timeout", &events);
    for turn in &busy {
        cluster.cancel(1, turn).await;
        cancelled(&cluster.watch_all(turn).await, "client");
    }
    cluster.demo_agent("hurried", json!({})).await;
    goes_on(cluster, 0, &turn).await;
}
