//! Workers that never get as far as taking their turn.

use std::fs;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    support::{Cluster, Event, kinds},
    workers::{failed, goes_on, snapshot},
};

const CODE: &str = "worker_startup_failed";

/// Posts a turn to a new agent and returns its end; no worker may have received it.
async fn attempt(cluster: &Cluster, i: usize, agent: &str, spec: Value) -> Vec<Event> {
    cluster.demo_agent(agent, spec).await;
    let turn = cluster.post(i, agent, "hello").await;
    never_started(&cluster.watch_all(&turn).await)
}

fn never_started(events: &[Event]) -> Vec<Event> {
    assert_eq!(kinds(events), ["accepted", "failed"]);
    assert_eq!(events[1].data["error"]["safe_to_retry"], true, "no worker received it");
    events.to_vec()
}

pub async fn a_missing_program_fails_its_turn(cluster: &Cluster) {
    let events = attempt(cluster, 0, "missing", json!({"command": ["/nonexistent/agent"]})).await;
    failed(&events, CODE, "program of this agent was not found");
    snapshot("missing_program", &events);
    // One that is looked up in PATH too.
    let events = attempt(cluster, 1, "missing-too", json!({"command": ["no-such-agent"]})).await;
    failed(&events, CODE, "program of this agent was not found");
}

pub async fn a_program_that_cannot_be_executed_fails_its_turn(cluster: &Cluster) {
    fs::create_dir_all(cluster.data_dir()).unwrap();
    let program = cluster.data_dir().join("plain-file");
    fs::write(&program, "no program").unwrap();
    let events = attempt(cluster, 1, "plain", json!({"command": [program]})).await;
    failed(&events, CODE, "program of this agent cannot be executed");
}

pub async fn a_workspace_that_cannot_be_made_fails_its_turn_alone(cluster: &Cluster) {
    let (status, made) =
        cluster.ask(0, Method::POST, "/v1/conversations", Some(json!({"agent": "demo"}))).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let conversation = made["id"].as_str().unwrap();
    let workspace = cluster.workspace(conversation);
    fs::create_dir_all(workspace.parent().unwrap()).unwrap();
    fs::write(&workspace, "in the way").unwrap();

    let turn = cluster.post_in(1, conversation, "demo", "hello").await;
    let events = never_started(&cluster.watch_all(&turn).await);
    failed(&events, CODE, "workspace of this agent's worker could not be prepared");

    fs::remove_file(&workspace).unwrap();
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_program_that_leaves_before_it_is_ready_fails_its_turn(cluster: &Cluster) {
    let events = attempt(cluster, 0, "exit0", json!({"env": {"DEMO_STARTUP": "exit0"}})).await;
    failed(&events, CODE, "stopped while it was starting (exit code 0)");
}

pub async fn a_program_that_fails_before_it_is_ready_fails_its_turn(cluster: &Cluster) {
    let events = attempt(cluster, 1, "exit1", json!({"env": {"DEMO_STARTUP": "exit1"}})).await;
    failed(&events, CODE, "stopped while it was starting (exit code 1)");
}

pub async fn a_program_that_is_never_ready_fails_its_turn(cluster: &Cluster) {
    let spec = json!({"env": {"DEMO_STARTUP": "never"}, "timeouts": {"startup": "1s"}});
    let events = attempt(cluster, 0, "never-ready", spec).await;
    failed(&events, CODE, "could not be started in time");
}
