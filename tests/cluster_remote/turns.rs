//! Turns on `lastword work`: what is its own to do. What is true of every stdio worker, wherever it is hosted, is in
//! `cluster_workers` and `cluster_shared`.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    remote_agent,
    support::{Cluster, Host, HostPlan, PATIENCE, eventually, is_alive, kinds, said},
    workers::{cancelled, completed, failed, goes_on, shell},
};

pub async fn a_turn_runs_on_a_worker_that_calls(cluster: &Cluster) {
    remote_agent(cluster, "caller", json!({})).await;
    // Accepted before anybody calls.
    let turn = cluster.post(1, "caller", "hi").await;
    let _host = Host::start(cluster, HostPlan::demo("caller", &[0]));
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "Hello! You said: hi");
    assert_eq!(kinds(&events)[..2], ["accepted", "started"]);
    let worker = cluster.worker(events[1].data["worker_id"].as_str().unwrap()).await;
    assert_eq!((&worker["runtime"], &worker["agent"]), (&json!("remote"), &json!("caller")));
    assert_eq!((&worker["state"], &worker["pid"]), (&json!("idle"), &json!(null)));
    assert_eq!(worker["pod"], json!(null), "it has a name, and that is no pod's: {worker}");
}

pub async fn a_conversation_keeps_its_process_and_a_fresh_one_is_told_what_was_said(cluster: &Cluster) {
    remote_agent(cluster, "rememberer", json!({})).await;
    let mut host = Host::start(cluster, HostPlan::demo("rememberer", &[0]));
    let first = cluster.post(0, "rememberer", "one").await;
    completed(&cluster.watch_all(&first).await);
    let process = host.workers();
    assert_eq!(process.len(), 1);
    let second = cluster.post_in(1, &first.conversation, "rememberer", "two").await;
    completed(&cluster.watch_all(&second).await);
    assert_eq!(host.workers(), process, "the same process has served both");
    host.terminate();
    assert!(host.wait_exit().await.success(), "{}", host.log());
    assert!(!is_alive(process[0]));

    let _other = Host::start(cluster, HostPlan::demo("rememberer", &[1]));
    let third = cluster.post_in(0, &first.conversation, "rememberer", "/recall").await;
    let known = said(&cluster.watch_all(&third).await);
    assert!(known.contains("You said: one") && known.contains("You said: two"), "{known}");
}

pub async fn many_turns_run_at_once_on_processes_of_their_own(cluster: &Cluster) {
    remote_agent(cluster, "crowd", json!({})).await;
    let host =
        Host::start(cluster, HostPlan { flags: &["--concurrency", "4"], ..HostPlan::demo("crowd", &[0]) });
    ask_and_answer(cluster, "crowd", 4).await;
    assert_eq!(host.workers().len(), 4);
}

pub async fn a_host_says_whether_its_workers_have_control_groups(cluster: &Cluster) {
    remote_agent(cluster, "grouped", json!({})).await;
    let host = Host::start(cluster, HostPlan::demo("grouped", &[0]));
    completed(&cluster.watch_all(&cluster.post(1, "grouped", "hello").await).await);
    // Of version 2 a group that holds others too is divided by nobody.
    let has_groups = lastword::host::process::cgroup::probe() == Ok(1);
    let said = "each worker has a control group of its own";
    assert_eq!(host.log().contains(said), has_groups, "{}", host.log());
}

/// So many turns that wait for an answer at the same time, and get their own.
async fn ask_and_answer(cluster: &Cluster, agent: &str, count: usize) {
    let turns = join_all((0..count).map(|n| {
        let text = format!("/ask {n}?");
        async move { cluster.post(n % 2, agent, &text).await }
    }))
    .await;
    let asks = join_all(turns.iter().map(|turn| cluster.until(0, turn, "ask", PATIENCE))).await;
    for (n, (turn, ask)) in turns.iter().zip(&asks).enumerate() {
        let ask_id = ask.data["ask_id"].as_str().unwrap();
        let (status, why) = cluster.answer(n % 2, turn, ask_id, json!(format!("{n}!"))).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{why}");
    }
    for (n, turn) in turns.iter().enumerate() {
        assert_eq!(completed(&cluster.watch_all(turn).await), format!("You answered: {n}!"));
    }
}

pub async fn a_killed_host_is_told_and_leaves_no_process(cluster: &Cluster) {
    remote_agent(cluster, "orphan", json!({})).await;
    let mut host = Host::start(cluster, HostPlan::demo("orphan", &[0]));
    let turn = cluster.post(1, "orphan", "/slow 6000").await;
    let mut stream = cluster.stream(1, &turn.id, -1).await;
    // Ten words a second: more than two beats of the host, by whose connection its end is told.
    while stream.until("delta", PATIENCE).await.text() != "word30 " {}
    let process = host.workers();
    host.kill();
    let killed = std::time::Instant::now();
    let events = stream.until_terminal(Duration::from_secs(10)).await;
    eprintln!("a killed host was told after {:.1} s", killed.elapsed().as_secs_f64());
    assert_eq!(events.last().unwrap().code(), "worker_lost");
    failed(&cluster.watch_all(&turn).await, "worker_lost", "connection to the worker");
    assert_eq!(process.len(), 1);
    eventually("its process is gone", async || (!is_alive(process[0])).then_some(())).await;
    let _other = Host::start(cluster, HostPlan::demo("orphan", &[1]));
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_host_that_leaves_lets_its_turn_end(cluster: &Cluster) {
    remote_agent(cluster, "leaver", json!({})).await;
    let mut host =
        Host::start(cluster, HostPlan { flags: &["--concurrency", "2"], ..HostPlan::demo("leaver", &[0]) });
    let turn = cluster.post(0, "leaver", "/slow 30").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    host.terminate();
    let words: String = (1..=30).map(|n| format!("word{n} ")).collect();
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), words);
    assert!(host.wait_exit().await.success(), "{}", host.log());
    let worker = cluster.ended(events[1].data["worker_id"].as_str().unwrap()).await;
    assert_eq!(worker["exit"], "left");
}

pub async fn a_host_whose_drain_is_over_interrupts_what_runs(cluster: &Cluster) {
    remote_agent(cluster, "hasty", json!({})).await;
    let mut host =
        Host::start(cluster, HostPlan { flags: &["--drain", "200ms"], ..HostPlan::demo("hasty", &[0]) });
    let turn = cluster.post(0, "hasty", "/slow 6000").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    host.terminate();
    failed(&cluster.watch_all(&turn).await, "interrupted", "");
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

pub async fn an_operator_stops_a_host(cluster: &Cluster) {
    remote_agent(cluster, "stopped", json!({})).await;
    let mut host =
        Host::start(cluster, HostPlan { command: quiet_worker(), ..HostPlan::demo("stopped", &[0]) });
    let turn = cluster.post(1, "stopped", "x").await;
    let started = cluster.until(1, &turn, "started", PATIENCE).await;
    let path = format!("/v1/workers/{}/stop", started.data["worker_id"].as_str().unwrap());
    assert_eq!(cluster.ask(1, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "operator");
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

/// A worker in a line of shell that says nothing until it is told to stop.
fn quiet_worker() -> Vec<String> {
    let script = r#"read -r order; say '{"type":"cancelled"}'; read -r end"#;
    serde_json::from_value(shell(script)["command"].clone()).unwrap()
}

pub async fn a_host_passes_on_the_variables_that_its_operator_names(cluster: &Cluster) {
    let show = r#"
say "{\"type\":\"delta\",\"text\":\"${ONE-unset} ${TWO-unset} ${LASTWORD_URL-unset}\"}"
say '{"type":"complete"}'"#;
    let command: Vec<String> = serde_json::from_value(shell(show)["command"].clone()).unwrap();
    for (agent, flags, wanted) in
        [("open", &[][..], "1 2 unset"), ("picky", &["--env-pass", "ONE,THREE"][..], "1 unset unset")]
    {
        remote_agent(cluster, agent, json!({})).await;
        let env = &[("ONE", "1"), ("TWO", "2")];
        let plan = HostPlan { command: command.clone(), flags, env, ..HostPlan::demo(agent, &[0]) };
        let _host = Host::start(cluster, plan);
        let events = cluster.watch_all(&cluster.post(0, agent, "x").await).await;
        assert_eq!(completed(&events), wanted);
    }
}
