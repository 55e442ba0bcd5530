//! Shared workers: each of their turns has its own answer, its own clocks and its own last word, whatever the others
//! do.
//!
//! The cases of a test share one cluster. Each has an agent of its own, and so workers of its own. A table has those that run
//! on both outlets, as in `cluster_workers`.
//! `CASE=name` picks those of that name.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "one case asks Postgres by SQL of its own")]

mod ends;
mod faults;
mod places;
mod replicas;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "another suite uses the rest")]
#[path = "../cluster_workers/workers.rs"]
mod workers;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use support::{Cluster, Outlet, OutletCase, PATIENCE, Plan, Turn, all_of};

/// Every case, and the outlets that it has.
fn table(cluster: &Cluster) -> Vec<OutletCase<'_>> {
    outlets![cluster;
        both faults::a_turn_that_ignores_a_cancel_ends_alone,
        both faults::a_stuck_turn_ends_alone_and_its_worker_takes_no_other,
        both places::many_turns_at_once_have_one_process_and_each_its_own_answer,
        both places::turns_wait_for_the_one_that_starts,
        both places::a_turn_that_waited_behind_another_has_the_worker_that_was_kept_for_it,
        log("a host takes as many turns at once as one of its processes may have")
            places::a_second_process_comes_when_the_first_is_full,
        both places::a_turn_that_talks_without_end_does_not_hold_up_the_others,
        both places::each_turn_is_told_what_was_said_before,
        log("a host runs one program, whatever the agent's revision")
            places::a_new_revision_has_a_worker_of_its_own,
        both places::a_worker_is_kept_for_its_idle_time_and_no_longer,
        both faults::a_crash_is_told_to_each_turn_once,
        both faults::a_turn_is_run_again_only_where_it_said_nothing,
        both faults::a_line_that_is_nobodys_ends_all_turns,
        both faults::a_line_that_is_somebodys_ends_that_turn_alone,
        both faults::a_turn_beyond_its_output_ends_alone,
        both faults::a_failed_start_is_told_to_each_turn_that_waited,
        both faults::a_start_that_takes_too_long_is_told_to_each_turn_that_waited,
        both faults::an_idle_workers_death_is_nobodys_news,
        both faults::halves_of_characters_join_within_their_turn_alone,
        both faults::what_an_end_leaves_unsaid_is_late,
        both ends::a_cancel_stops_one_turn_alone,
        log("operators stop a host of `lastword work`, not one of its processes")
            ends::an_operator_stops_all_turns_of_a_worker,
        log("operators stop a host of `lastword work`, not one of its processes")
            ends::a_stopped_idle_worker_tells_nobody,
    ]
}

#[tokio::test]
async fn many_turns_share_a_worker() {
    every_case(Outlet::Log).await;
}

#[tokio::test]
async fn many_turns_share_a_worker_of_a_host() {
    every_case(Outlet::Http).await;
}

/// On one replica, where it can be said how many workers there must be.
async fn every_case(outlet: Outlet) {
    let cluster = &Cluster::with(Plan { replicas: 1, turns_max: 256, outlet, ..Plan::default() }).await;
    all_of(outlet, table(cluster)).await;
}

/// An agent with shared workers; `more` is laid over its spec.
async fn share(cluster: &Cluster, agent: &str, mut more: Value) {
    more["scope"] = json!("shared");
    cluster.demo_agent(agent, more).await;
}

/// So many turns that have asked something and wait, each with the id of its question.
async fn asking(cluster: &Cluster, agent: &str, count: usize) -> Vec<(Turn, String)> {
    asking_at(cluster, cluster.living()[0], agent, count).await
}

/// The same, posted at replica `i`.
async fn asking_at(cluster: &Cluster, i: usize, agent: &str, count: usize) -> Vec<(Turn, String)> {
    join_all((0..count).map(async |n| {
        let turn = cluster.post(i, agent, &format!("/ask {n}?")).await;
        let ask = cluster.until(i, &turn, "ask", PATIENCE).await;
        (turn, ask.data["ask_id"].as_str().unwrap().to_owned())
    }))
    .await
}

/// Answers them all, each with a number of its own, and fails unless each turn has heard its own.
async fn answer_all(cluster: &Cluster, asking: &[(Turn, String)]) {
    join_all(asking.iter().enumerate().map(async |(n, (turn, ask_id))| {
        let (status, why) = cluster.answer(cluster.living()[0], turn, ask_id, json!(format!("{n}!"))).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{why}");
        let events = cluster.watch_all(turn).await;
        assert_eq!(workers::completed(&events), format!("You answered: {n}!"));
    }))
    .await;
}

/// The workers of an agent that live, the oldest first.
async fn living(cluster: &Cluster, agent: &str) -> Vec<Value> {
    let mut workers = cluster.workers().await;
    workers.retain(|worker| worker["agent"] == agent);
    workers.reverse();
    workers
}

/// An agent whose shared workers run this script: `say(kind, turn, **fields)` writes a message, and
/// `hear()` gives the next one, `None` at the end.
fn python(script: &str, more: Value) -> Value {
    let frame = "
import json, os, sys
def say(kind, turn=None, **fields):
    if turn: fields['turn_id'] = turn['turn_id']
    print(json.dumps({'type': kind, **fields}), flush=True)
def hear():
    line = sys.stdin.readline()
    heard = json.loads(line) if line else None
    return None if heard and heard['type'] == 'shutdown' else heard
say('ready')
";
    let mut spec = json!({
        "runtime": "process", "scope": "shared", "command": ["python3", "-c", format!("{frame}{script}")],
    });
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}
