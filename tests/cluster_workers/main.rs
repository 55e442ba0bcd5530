//! Whatever a worker does, its turn gets one last word, and every replica shows the same one.
//!
//! A host of stdio workers has two outlets: the log, where a replica is the host, and HTTP, where `lastword work` is. One
//! table has the cases of both; each outlet has a test, and a cluster of two replicas that its cases share. Each case has an
//! agent or a conversation of its own, posts its turns on one replica and watches them on both. `CASE=name` picks those of
//! that name.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "some cases ask Postgres by SQL of their own")]

mod bounds;
mod cancel;
mod clocks;
mod content;
mod mid_turn;
mod past;
mod protocol;
mod startup;
#[path = "../support/mod.rs"]
mod support;
mod warm;
mod workers;

use serde_json::json;
use support::{Cluster, Outlet, OutletCase, Plan, all_of};

/// Every case, and the outlets that it has. The longest first.
fn table(cluster: &Cluster) -> Vec<OutletCase<'_>> {
    outlets![cluster;
        both cancel::a_worker_that_ignores_a_cancel_is_ended,
        both startup::a_start_that_fails_behind_a_greeting_says_whose_stdout_is,
        both clocks::an_announced_budget_extends_the_progress_clock,
        both clocks::frequent_events_keep_the_progress_clock_wound,
        both clocks::beats_are_no_progress,
        both clocks::beats_do_not_outlast_an_announced_budget,
        both clocks::a_stopped_process_is_noticed_and_writes_nothing_later,
        both clocks::the_cap_ends_a_turn_that_goes_on_and_on,
        both clocks::a_question_that_nobody_answers_ends_its_turn,
        both startup::a_program_that_is_never_ready_fails_its_turn,
        both startup::what_a_program_prints_before_it_is_ready_does_no_harm,
        both startup::a_program_that_prints_on_and_on_is_not_waited_for,
        both startup::a_missing_program_fails_its_turn,
        both startup::a_program_that_cannot_be_executed_fails_its_turn,
        both startup::a_workspace_that_cannot_be_made_fails_its_turn_alone,
        both startup::a_program_that_leaves_before_it_is_ready_fails_its_turn,
        both startup::a_program_that_fails_before_it_is_ready_fails_its_turn,
        both startup::a_turn_whose_program_did_not_start_is_not_run_again,
        both mid_turn::a_crash_is_told_with_its_exit_code,
        both mid_turn::a_worker_that_kills_itself_is_told_with_its_signal,
        both mid_turn::a_segmentation_fault_is_named,
        both mid_turn::a_worker_killed_from_outside_is_told_with_its_signal,
        both mid_turn::what_a_turn_left_running_dies_with_its_worker,
        both mid_turn::a_worker_over_its_memory_is_told_so,
        both mid_turn::a_worker_with_too_many_processes_is_told_so,
        both mid_turn::detail_reaches_clients_only_where_the_agent_exposes_it,
        log("operators see a host of `lastword work` as one worker: its processes are in its log")
            mid_turn::operators_see_how_a_worker_ended,
        both mid_turn::a_turn_that_said_nothing_is_run_again_where_that_is_safe,
        both mid_turn::a_turn_whose_worker_closed_its_output_is_run_again_where_that_is_safe,
        both mid_turn::a_turn_that_spoke_is_not_run_again,
        both mid_turn::a_turn_whose_worker_broke_the_protocol_is_not_run_again,
        both mid_turn::a_turn_is_not_run_again_unless_its_agent_says_so,
        both mid_turn::a_turn_is_tried_three_times_at_most,
        both protocol::a_line_that_is_no_json_fails_its_turn,
        both protocol::a_line_that_is_no_utf8_fails_its_turn,
        both protocol::a_line_beyond_all_measure_fails_its_turn,
        both protocol::a_raw_nul_byte_fails_its_turn,
        both protocol::an_escaped_nul_arrives_intact,
        both protocol::a_message_for_another_turn_fails_the_one_that_runs,
        both protocol::output_after_the_end_changes_nothing,
        both protocol::two_ends_are_one_last_word,
        both protocol::an_error_is_told_in_the_workers_words,
        both protocol::an_empty_reply_is_no_success,
        both protocol::output_beyond_the_limit_fails_its_turn,
        both cancel::a_deleted_conversation_cancels_its_turn,
        both cancel::a_deleted_conversation_is_told_no_more_and_erased,
        both cancel::a_queued_turn_can_be_cancelled,
        both cancel::a_starting_turn_can_be_cancelled,
        both cancel::a_running_turn_can_be_cancelled_and_its_worker_lives_on,
        log("operators stop such a host, not one of its processes")
            cancel::a_stopped_worker_cancels_its_turn,
        log("operators stop such a host, not one of its processes")
            cancel::a_stopped_idle_worker_tells_nobody,
        both warm::a_question_is_answered_through_the_other_replica,
        both warm::a_crash_names_the_turn_that_runs,
        both warm::an_idle_workers_death_is_nobodys_news,
        both warm::a_conversation_goes_on_through_either_replica,
        both warm::an_idle_worker_is_reaped_and_its_conversation_goes_on,
        both warm::idle_reaping_never_hits_a_live_turn,
        both warm::a_fresh_worker_is_told_no_more_than_the_agent_allows,
        both past::a_fresh_worker_is_told_what_was_said_and_how_it_ended,
        both past::a_long_answer_is_shortened_and_what_was_before_it_is_told,
        both past::a_worker_is_told_that_older_turns_are_left_out,
        both past::a_history_that_cannot_be_read_fails_its_turn,
        both content::a_whole_answer_looks_like_this,
        both content::every_kind_of_message_becomes_an_event,
        both content::a_flood_arrives_whole_and_in_order,
        both content::characters_of_many_bytes_arrive_intact,
        both content::a_character_cut_in_halves_arrives_whole,
        both content::a_half_that_stays_alone_is_replaced_and_its_turn_goes_on,
        both content::what_platforms_put_around_lines_does_no_harm,
        both content::a_guard_stops_a_turn_before_any_worker_sees_it,
        both content::a_worker_receives_the_turn_as_it_was_posted,
        both content::an_input_that_no_worker_can_be_handed_is_refused,
        both content::an_answer_that_no_worker_can_be_handed_is_refused,
        both content::an_input_that_proves_too_long_later_is_not_worth_a_retry,
        both content::what_is_kept_whole_keeps_its_numbers_and_its_order,
        both content::metadata_comes_back,
    ]
}

#[tokio::test]
async fn whatever_a_worker_does_its_turn_gets_one_last_word() {
    every_case(Outlet::Log).await;
}

#[tokio::test]
async fn whatever_a_worker_of_a_host_does_its_turn_gets_one_last_word() {
    every_case(Outlet::Http).await;
}

async fn every_case(outlet: Outlet) {
    let cluster = &Cluster::with(Plan { outlet, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    all_of(outlet, table(cluster)).await;
}

/// Of the log alone, since it is about the gateway's own slots.
#[tokio::test]
async fn a_turn_waits_for_a_free_place_no_longer_than_its_queue_clock() {
    let cluster = &Cluster::with(Plan { turns_max: 1, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    clocks::a_turn_that_nobody_takes_in_time_is_told_so(cluster).await;
}

/// Of the log alone: what a host passes on is its own to say (`cluster_remote`).
#[tokio::test]
async fn workers_find_the_variables_that_an_operator_names() {
    startup::workers_find_the_variables_that_an_operator_names(&Cluster::with(startup::plan()).await).await;
}

#[tokio::test]
async fn forty_conversations_have_eight_workers() {
    let cluster = &Cluster::with(bounds::plan(Outlet::Log)).await;
    bounds::forty_conversations_have_eight_workers(cluster).await;
    bounds::the_bound_is_measured(cluster).await;
}

#[tokio::test]
async fn forty_conversations_have_eight_workers_of_a_host() {
    bounds::forty_conversations_have_eight_workers(&Cluster::with(bounds::plan(Outlet::Http)).await).await;
}

#[tokio::test]
async fn the_worker_that_was_idle_for_longest_leaves_first() {
    for outlet in [Outlet::Log, Outlet::Http] {
        let cluster = &Cluster::with(bounds::plan(outlet)).await;
        bounds::the_worker_that_was_idle_for_longest_leaves_first(cluster).await;
    }
}

/// Of the log alone: a turn waits in the gateway's queue, and the workers are stopped by operators.
#[tokio::test]
async fn a_turn_without_room_for_its_worker_waits_in_the_queue() {
    let cluster = &Cluster::with(bounds::plan(Outlet::Log)).await;
    bounds::a_turn_without_room_for_its_worker_waits_in_the_queue(cluster).await;
}
