//! Workers that violate the protocol, or go to its limits.

use serde_json::json;

use crate::{
    support::{Cluster, Event, Turn, kinds, said},
    workers::{completed, failed, goes_on},
};

const CODE: &str = "worker_protocol";

/// Posts a command to the demo agent and returns the whole turn.
async fn play(cluster: &Cluster, i: usize, command: &str) -> (Turn, Vec<Event>) {
    let turn = cluster.post(i, "demo", command).await;
    let events = cluster.watch_all(&turn).await;
    (turn, events)
}

/// The same for a command that fails its turn and not its conversation.
async fn play_wrong(cluster: &Cluster, i: usize, command: &str, told: &str) -> Vec<Event> {
    let (turn, events) = play(cluster, i, command).await;
    assert_eq!(failed(&events, CODE, told)["retryable"], false);
    goes_on(cluster, 1 - i, &turn).await;
    events
}

pub async fn a_line_that_is_no_json_fails_its_turn(cluster: &Cluster) {
    play_wrong(cluster, 0, "/garbage", "not valid JSON").await;
}

pub async fn a_line_that_is_no_utf8_fails_its_turn(cluster: &Cluster) {
    play_wrong(cluster, 1, "/badutf8", "not valid UTF-8").await;
}

pub async fn a_line_beyond_all_measure_fails_its_turn(cluster: &Cluster) {
    play_wrong(cluster, 0, "/longline", "longer than 1 MiB").await;
}

pub async fn a_raw_nul_byte_fails_its_turn(cluster: &Cluster) {
    play_wrong(cluster, 1, "/rawnul", "contains a NUL byte").await;
}

pub async fn a_message_for_another_turn_fails_the_one_that_runs(cluster: &Cluster) {
    let events = play_wrong(cluster, 0, "/wrongturn", "message for another turn").await;
    assert_eq!(said(&events), "", "it was taken for this one's");
}

pub async fn an_escaped_nul_arrives_intact(cluster: &Cluster) {
    let (turn, events) = play(cluster, 1, "/nul").await;
    assert_eq!(completed(&events), "before\0after");
    assert_eq!(events.last().unwrap().text(), "before\0after");
    goes_on(cluster, 0, &turn).await;
}

pub async fn output_after_the_end_changes_nothing(cluster: &Cluster) {
    let (turn, events) = play(cluster, 0, "/afterend").await;
    assert_eq!(completed(&events), "I go on after my end.");
    goes_on(cluster, 1, &turn).await;
    assert_eq!(cluster.events(1, &turn).await, events, "the log of an ended turn has changed");
}

pub async fn two_ends_are_one_last_word(cluster: &Cluster) {
    let (turn, events) = play(cluster, 1, "/twoends").await;
    assert_eq!(completed(&events), "I end twice.");
    goes_on(cluster, 0, &turn).await;
    assert_eq!(cluster.events(0, &turn).await, events, "the log of an ended turn has changed");
}

pub async fn an_error_is_told_in_the_workers_words(cluster: &Cluster) {
    let (turn, events) = play(cluster, 0, "/error The oven is cold.").await;
    let error = failed(&events, "agent_error", "The oven is cold.");
    assert_eq!(error["message"], "The oven is cold.");
    assert_eq!(kinds(&events), ["accepted", "started", "failed"]);
    goes_on(cluster, 1, &turn).await;
}

pub async fn an_empty_reply_is_no_success(cluster: &Cluster) {
    let (turn, events) = play(cluster, 1, "/silent").await;
    failed(&events, "empty_reply", "finished without an answer");
    goes_on(cluster, 0, &turn).await;
}

pub async fn output_beyond_the_limit_fails_its_turn(cluster: &Cluster) {
    cluster.demo_agent("terse", json!({"limits": {"output_bytes": "1KiB"}})).await;
    let turn = cluster.post(0, "terse", "/flood 5000").await;
    let events = cluster.watch_all(&turn).await;
    failed(&events, CODE, "more than this agent may send in one turn");
    let spoken: usize = said(&events).len();
    assert!((1..=1024).contains(&spoken), "{spoken} bytes came before the limit");
    goes_on(cluster, 1, &turn).await;
}
