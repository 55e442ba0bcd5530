//! Workers that fail before they take their turn.

use std::fs;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    support::{Cluster, Event, Outlet, Plan, Turn, kinds},
    workers::{completed, failed, goes_on, shell, snapshot, unstarted},
};

const CODE: &str = "worker_startup_failed";

/// Posts a turn to a new agent and returns its end; no worker may have received it.
async fn attempt(cluster: &Cluster, i: usize, agent: &str, spec: Value) -> Vec<Event> {
    cluster.demo_agent(agent, spec).await;
    let turn = cluster.post(i, agent, "hello").await;
    never_started(cluster, &turn).await
}

async fn never_started(cluster: &Cluster, turn: &Turn) -> Vec<Event> {
    let events = cluster.watch_all(turn).await;
    assert_eq!(kinds(&events), unstarted(cluster, "failed"));
    assert_eq!(events.last().unwrap().data["error"]["safe_to_retry"], true, "no worker received it");
    events
}

pub async fn a_missing_program_fails_its_turn(cluster: &Cluster) {
    let events = attempt(cluster, 0, "missing", json!({"command": ["/nonexistent/agent"]})).await;
    failed(&events, CODE, "program of this agent was not found");
    snapshot(
        if cluster.outlet() == Outlet::Log { "missing_program" } else { "missing_program_of_a_host" },
        &events,
    );
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
    let events = never_started(cluster, &turn).await;
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

pub async fn a_turn_whose_program_did_not_start_is_not_run_again(cluster: &Cluster) {
    let spec = json!({"env": {"DEMO_STARTUP": "exit1"}, "retry": "safe"});
    let events = attempt(cluster, 0, "exit1-safe", spec).await;
    assert_eq!(failed(&events, CODE, "exit code 1")["attempt"], 1);
}

pub async fn a_program_that_is_never_ready_fails_its_turn(cluster: &Cluster) {
    let spec = json!({"env": {"DEMO_STARTUP": "never"}, "timeouts": {"startup": "4s"}});
    let events = attempt(cluster, 0, "never-ready", spec).await;
    failed(
        &events,
        CODE,
        "runs, and has not said `ready` in time. A program whose stdout is buffered must flush",
    );
}

/// Greets on stdout as launchers do, flushes nothing, and answers if `goes_on`.
fn greeter(goes_on: &str) -> Value {
    let script = format!(
        r#"
import json, sys, time
print("> agent@1.0.0 start\n> node index.js\n")
print("42")
sys.stdout.flush()
{goes_on}
print("\ufeff" + json.dumps({{"type": "ready"}}) + "\r")
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "turn":
        print(json.dumps({{"type": "delta", "turn_id": message["turn_id"], "text": "hello"}}))
        print(json.dumps({{"type": "complete", "turn_id": message["turn_id"]}}))
"#
    );
    json!({"runtime": "process", "command": ["python3", "-c", script], "timeouts": {"startup": "10s"}})
}

pub async fn what_a_program_prints_before_it_is_ready_does_no_harm(cluster: &Cluster) {
    for scope in ["conversation", "shared"] {
        let mut spec = greeter("");
        spec["scope"] = scope.into();
        cluster.put_agent("greeter", spec).await;
        let turn = cluster.post(0, "greeter", "hello").await;
        let events = cluster.watch_all(&turn).await;
        assert_eq!(kinds(&events), ["accepted", "started", "delta", "completed"], "{scope}: {events:?}");
    }
}

pub async fn a_start_that_fails_behind_a_greeting_says_whose_stdout_is(cluster: &Cluster) {
    let whose = "lines to stdout that are no messages: stdout is for the protocol, logs are for stderr";
    let mut spec = greeter("raise SystemExit(3)");
    spec["expose_errors"] = true.into();
    cluster.put_agent("greeter-that-fails", spec.clone()).await;
    let turn = cluster.post(0, "greeter-that-fails", "hello").await;
    let events = never_started(cluster, &turn).await;
    failed(&events, CODE, "stopped while it was starting (exit code 3)");
    failed(&events, CODE, whose);
    let log = &events.last().unwrap().data["error"]["detail"];
    assert!(log.as_str().unwrap().contains("> node index.js\n42\n"), "it is in the worker's log: {log}");

    // A shell greets long before the clock lapses, however busy the machine is.
    spec["command"] = json!(["sh", "-c", "echo '> node index.js'; echo 42; exec sleep 60"]);
    spec["timeouts"] = json!({"startup": "5s"});
    for scope in ["conversation", "shared"] {
        spec["scope"] = scope.into();
        cluster.put_agent("greeter-that-fails", spec.clone()).await;
        let turn = cluster.post(1, "greeter-that-fails", "hello").await;
        let events = never_started(cluster, &turn).await;
        failed(&events, CODE, "runs, and has not said `ready` in time");
        failed(&events, CODE, whose);
    }
}

pub async fn a_program_that_prints_on_and_on_is_not_waited_for(cluster: &Cluster) {
    cluster.put_agent("greeter-without-end", greeter("while True: print('noise')")).await;
    let turn = cluster.post(0, "greeter-without-end", "hello").await;
    let events = never_started(cluster, &turn).await;
    failed(&events, CODE, "not valid JSON. The worker wrote lines to stdout");
}

/// One replica whose own environment has more than its workers may find.
pub fn plan() -> Plan {
    let env = [
        ("LASTWORD_WORKER_ENV_PASS", "HTTPS_PROXY,SSL_CERT_FILE,UNSET_HERE,OVER"),
        ("HTTPS_PROXY", "http://proxy.example:3128"),
        ("SSL_CERT_FILE", "/etc/ssl/own.pem"),
        ("NOBODYS", "secret"),
        ("OVER", "gateway"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Plan { replicas: 1, env, ..Plan::default() }
}

pub async fn workers_find_the_variables_that_an_operator_names(cluster: &Cluster) {
    let show = r#"
for name in HTTPS_PROXY SSL_CERT_FILE UNSET_HERE OVER NOBODYS LASTWORD_WORKER_ENV_PASS; do
  say "{\"type\":\"delta\",\"text\":\"$name=$(printenv $name) \"}"
done
say '{"type":"complete"}'"#;
    let mut spec = shell(show);
    spec["env"] = json!({"OVER": "agent"});
    cluster.put_agent("environment", spec).await;
    let wanted = "HTTPS_PROXY=http://proxy.example:3128 SSL_CERT_FILE=/etc/ssl/own.pem UNSET_HERE= OVER=agent NOBODYS= \
                  LASTWORD_WORKER_ENV_PASS= ";
    let turn = cluster.post(0, "environment", "x").await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), wanted);
}
