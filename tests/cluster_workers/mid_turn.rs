//! Workers that die in the middle of a turn, and the turn's last word.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    support::{Cluster, PATIENCE, eventually, is_alive, kinds, outside, signal},
    workers::{completed, failed, goes_on, shell, shell_with, snapshot},
};

const CODE: &str = "worker_exited";

pub async fn a_crash_is_told_with_its_exit_code(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/crash 3").await;
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, CODE, "stopped unexpectedly (exit code 3)");
    assert_eq!((&error["retryable"], &error["safe_to_retry"]), (&json!(true), &json!(false)));
    snapshot("crash", &events);
    goes_on(cluster, 1, &turn).await;
}

pub async fn a_worker_that_kills_itself_is_told_with_its_signal(cluster: &Cluster) {
    let turn = cluster.post(1, "demo", "/kill").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, CODE, "stopped unexpectedly (signal SIGKILL)");
    assert_eq!(kinds(&events), ["accepted", "started", "delta", "failed"], "what it said first was lost");
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_segmentation_fault_is_named(cluster: &Cluster) {
    cluster.put_agent("segv", shell("kill -SEGV $$")).await;
    let turn = cluster.post(0, "segv", "hello").await;
    failed(&cluster.watch_all(&turn).await, CODE, "stopped unexpectedly (signal SIGSEGV)");
}

pub async fn a_worker_killed_from_outside_is_told_with_its_signal(cluster: &Cluster) {
    let turn = cluster.post(1, "demo", "/slow 100000").await;
    cluster.until(0, &turn, "delta", PATIENCE).await;
    signal(cluster.worker_of(&turn).await.pid, Signal::SIGKILL);
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, CODE, "stopped unexpectedly (signal SIGKILL)");
    assert!(error["last_progress_at"].is_string(), "it had said something: {error}");
    goes_on(cluster, 0, &turn).await;
}

pub async fn what_a_turn_left_running_dies_with_its_worker(cluster: &Cluster) {
    let (first, second) = cluster.post_twice("demo", "/orphan", "/slow 100000").await;
    let orphan: i32 = completed(&cluster.watch_all(&first).await).parse().unwrap();
    let orphan = outside(cluster.worker_of(&second).await.pid, orphan);
    assert!(is_alive(orphan), "it should live as long as its worker");
    signal(cluster.worker_of(&second).await.pid, Signal::SIGKILL);
    failed(&cluster.watch_all(&second).await, CODE, "signal SIGKILL");
    eventually("the process left behind is gone", async || (!is_alive(orphan)).then_some(())).await;
}

pub async fn a_worker_over_its_memory_is_told_so(cluster: &Cluster) {
    // What `tail` keeps, it keeps in memory until `sleep` reads it, which is never.
    let hoard = "head -c 100000000 /dev/zero | tail -c 100000000 | sleep 1000";
    let spec = shell_with(hoard, json!({"limits": {"memory": "64MiB"}}));
    cluster.put_agent("hoard", spec).await;
    let turn = cluster.post(1, "hoard", "hello").await;
    failed(&cluster.watch_all(&turn).await, CODE, "out of memory (limit 64MiB)");
}

pub async fn a_worker_with_too_many_processes_is_told_so(cluster: &Cluster) {
    let many = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
    let spec = shell_with(many, json!({"limits": {"processes": 4}}));
    cluster.put_agent("many", spec).await;
    let turn = cluster.post(0, "many", "hello").await;
    failed(&cluster.watch_all(&turn).await, CODE, "too many processes (limit 4)");
}

pub async fn detail_reaches_clients_only_where_the_agent_exposes_it(cluster: &Cluster) {
    cluster.demo_agent("open", json!({"expose_errors": true})).await;
    let turn = cluster.post(1, "open", "/crash 7").await;
    let events = cluster.watch_all(&turn).await;
    let detail = &failed(&events, CODE, "exit code 7")["detail"];
    assert!(detail.as_str().unwrap().contains("crashing with exit code 7, as asked"), "{detail}");

    cluster.demo_agent("closed", json!({"expose_errors": false})).await;
    let turn = cluster.post(0, "closed", "/crash 7").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, CODE, "exit code 7");
    let whole = format!("{events:?}");
    assert!(!whole.contains("as asked"), "the end of stderr leaked: {whole}");
}

pub async fn operators_see_how_a_worker_ended(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/crash 9").await;
    failed(&cluster.watch_all(&turn).await, CODE, "exit code 9");
    let ended = cluster.ended(&cluster.worker_of(&turn).await.id).await;
    assert_eq!(ended["exit"], "exit code 9", "{ended}");
    let tail = ended["stderr_tail"].as_str().unwrap();
    assert!(tail.contains("crashing with exit code 9, as asked"), "{ended}");
    assert!(ended["ended_at"].is_string() && ended["turn_id"].is_null(), "{ended}");
}

/// Dies at its first attempt, without a word.
const DIES_ONCE: &str = r#"
[ -e tried ] || { touch tried; exit 5; }
say '{"type":"delta","text":"at last"}'
say '{"type":"complete"}'"#;

pub async fn a_turn_that_said_nothing_is_run_again_where_that_is_safe(cluster: &Cluster) {
    cluster.put_agent("dies-once", shell_with(DIES_ONCE, json!({"retry": "safe"}))).await;
    let turn = cluster.post(1, "dies-once", "hello").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "at last");
    snapshot("second_attempt", &events);
    assert_eq!(cluster.get(0, &format!("/v1/turns/{}", turn.id)).await["attempt"], 2);
}

/// Its program lives on: it is ended before the turn is run again.
pub async fn a_turn_whose_worker_closed_its_output_is_run_again_where_that_is_safe(cluster: &Cluster) {
    let script = r#"
exec 9>lock
text='after the first attempt'
flock -n 9 || text='beside the first attempt'
[ -e tried ] || { touch tried; exec sleep 300 >&-; }
say '{"type":"delta","text":"'"$text"'"}'
say '{"type":"complete"}'"#;
    cluster.put_agent("closes-once", shell_with(script, json!({"retry": "safe"}))).await;
    let turn = cluster.post(1, "closes-once", "hello").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "after the first attempt");
    assert_eq!(kinds(&events), ["accepted", "started", "started", "delta", "completed"]);
}

pub async fn a_turn_is_not_run_again_unless_its_agent_says_so(cluster: &Cluster) {
    cluster.put_agent("dies-once-only", shell_with(DIES_ONCE, json!({"retry": "never"}))).await;
    let turn = cluster.post(0, "dies-once-only", "hello").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(failed(&events, CODE, "exit code 5")["attempt"], 1);
    assert_eq!(kinds(&events), ["accepted", "started", "failed"]);
}

pub async fn a_turn_that_spoke_is_not_run_again(cluster: &Cluster) {
    cluster.demo_agent("safe", json!({"retry": "safe"})).await;
    let turn = cluster.post(1, "safe", "/crash 5").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(failed(&events, CODE, "exit code 5")["attempt"], 1);
    assert_eq!(kinds(&events), ["accepted", "started", "delta", "failed"]);
}

pub async fn a_turn_whose_worker_broke_the_protocol_is_not_run_again(cluster: &Cluster) {
    cluster.demo_agent("safe-babbler", json!({"retry": "safe"})).await;
    let turn = cluster.post(0, "safe-babbler", "/garbage").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(failed(&events, "worker_protocol", "not valid JSON")["attempt"], 1);
    assert_eq!(kinds(&events), ["accepted", "started", "failed"]);
}

pub async fn a_turn_is_tried_three_times_at_most(cluster: &Cluster) {
    cluster.put_agent("dies-always", shell_with("exit 5", json!({"retry": "safe"}))).await;
    let turn = cluster.post(0, "dies-always", "hello").await;
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, CODE, "exit code 5");
    assert_eq!((&error["attempt"], &error["safe_to_retry"]), (&json!(3), &json!(true)));
    assert_eq!(kinds(&events), ["accepted", "started", "started", "started", "failed"]);
}
