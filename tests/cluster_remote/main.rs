//! Remote workers: real replicas, real `lastword work` processes, and a scripted worker where the protocol is misused.
//!
//! The cases of a test share one cluster, each with an agent and a host of its own. `CASE=name` runs only the cases of
//! that name. A test that breaks a replica has a cluster to itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "one case asks Postgres by SQL of its own")]

mod bound;
mod hand;
mod protocol;
mod replicas;
#[path = "../support/mod.rs"]
mod support;
mod turns;
#[allow(dead_code, reason = "another suite uses the rest")]
#[path = "../cluster_workers/workers.rs"]
mod workers;

use serde_json::{Value, json};
use support::{Cluster, Plan, WORKERS, all};

#[tokio::test(flavor = "multi_thread")]
async fn turns_run_on_workers_that_call() {
    let cluster = &pair().await;
    all(cases![cluster;
        turns::a_turn_runs_on_a_worker_that_calls,
        turns::a_conversation_keeps_its_process_and_a_fresh_one_is_told_what_was_said,
        turns::many_turns_run_at_once_on_processes_of_their_own,
        turns::a_host_says_whether_its_workers_have_control_groups,
        turns::a_host_passes_on_the_variables_that_its_operator_names,
        turns::a_killed_host_is_told_and_leaves_no_process,
        turns::a_host_that_leaves_lets_its_turn_end,
        turns::a_host_whose_drain_is_over_interrupts_what_runs,
        turns::an_operator_stops_a_host,
        bound::a_worker_with_a_minted_token_serves_its_conversation_and_leaves_when_idle,
        bound::a_host_that_retires_takes_no_new_turn_and_ends_those_that_run,
        bound::a_host_that_reaches_no_gateway_leaves_when_told,
        bound::a_minted_token_opens_nothing_else,
        bound::a_turn_that_a_replica_keeps_for_its_worker_goes_to_it,
        bound::whoever_knows_why_a_worker_ended_says_so,
        protocol::messages_count_once_and_in_order,
        protocol::a_gap_is_named,
        protocol::a_stale_attempt_and_an_ended_turn_are_told_apart,
        protocol::a_turn_opens_to_its_own_token_only,
        protocol::an_offer_that_nobody_takes_goes_to_another,
        protocol::a_worker_that_falls_silent_is_lost,
        protocol::a_worker_whose_beat_breaks_off_is_lost_soon,
        protocol::a_worker_that_dies_between_two_beats_is_lost_soon,
        protocol::each_change_of_replica_moves_the_turn_and_loses_nothing,
        protocol::a_worker_that_was_told_to_stop_may_say_so_at_another_replica,
        protocol::a_character_cut_in_halves_arrives_whole_through_two_replicas,
        protocol::what_the_former_holder_was_to_tell_is_told_by_the_next,
    ])
    .await;
}

/// Two replicas that let workers in.
async fn pair() -> Cluster {
    Cluster::with(Plan { env: workers_in(), ..Plan::default() }).await
}

fn workers_in() -> Vec<(String, String)> {
    vec![("LASTWORD_WORKER_TOKENS".to_owned(), WORKERS.to_owned())]
}

/// An agent whose workers call; `more` is laid over its spec.
async fn remote_agent(cluster: &Cluster, name: &str, more: Value) {
    let mut spec = json!({"runtime": "remote"});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    cluster.put_agent(name, spec).await;
}
