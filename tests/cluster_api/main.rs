//! The API is the same on all replicas: turns that are posted here run there, are watched here and stopped there.
//!
//! The cases share one cluster of two replicas; each has a conversation of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "asks Postgres by SQL of its own")]

mod lines;
mod newer;
#[path = "../support/mod.rs"]
mod support;
mod threads;

use serde_json::json;
use support::{Cluster, Plan, all};

/// Turns in flight in one conversation.
const DEPTH_MAX: usize = 6;

#[tokio::test]
async fn every_replica_answers_alike() {
    let env = vec![("LASTWORD_CONVERSATION_DEPTH_MAX".to_owned(), DEPTH_MAX.to_string())];
    let cluster = &Cluster::with(Plan { env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    all(cases![cluster;
        lines::a_key_posted_to_both_at_once_makes_one_turn,
        lines::turns_posted_here_and_there_run_in_order,
        lines::a_busy_conversation_rejects_and_says_where_its_turn_is,
        lines::an_interrupt_ends_what_runs_elsewhere_and_what_waits,
        lines::a_conversation_takes_so_many_turns_and_no_more,
        lines::a_client_that_leaves_cancels_its_turn_wherever_it_runs,
        threads::a_conversation_is_told_alike_on_both,
        threads::a_cursor_of_one_replica_holds_on_the_other,
        threads::an_agent_put_here_is_used_there,
        threads::a_retry_asked_for_there_cites_the_turn_that_failed_here,
        threads::both_list_the_same,
        newer::an_agent_of_a_newer_release_is_shown_and_its_turns_wait,
        newer::an_agent_that_needs_a_newer_reader_is_shown_and_its_turns_are_not_claimed,
        newer::a_field_of_a_newer_release_is_kept_when_its_agent_is_written_back,
        newer::an_event_of_a_newer_release_is_told_by_its_name,
        newer::a_code_of_a_newer_release_is_told_as_it_is,
    ])
    .await;
}
