//! The runtime `kubernetes` against a scripted API server: its requests, its reaction to the answers, and its recovery
//! after an outage of the server.
//!
//! A real cluster has a scheduler, kubelets and a garbage collector. Here the test plays them: it sets the status of a
//! pod, in their words.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "one test plants rows and looks at them by SQL of its own")]

mod field;
mod kubelet;
mod outages;
mod pods;
mod queue;
mod server;
mod starts;
#[path = "../support/mod.rs"]
mod support;
mod turns;
mod world;

use field::Field;
use support::{Plan, all};

#[tokio::test]
async fn a_turn_whose_worker_never_comes_is_told_why() {
    let field = &Field::open(Plan::default()).await;
    all(cases![field;
        starts::an_image_that_cannot_be_pulled,
        starts::a_secret_that_is_missing,
        starts::a_pod_that_no_node_has_room_for,
        starts::a_worker_that_ends_before_it_calls,
        starts::detail_for_whoever_may_see_it,
        starts::a_node_that_is_waited_for,
        starts::a_pod_that_is_deleted_while_it_starts,
        starts::a_quota_that_is_used_up_for_a_while,
        starts::a_quota_that_stays_used_up,
        starts::a_pod_that_the_cluster_does_not_take,
        starts::a_turn_that_is_cancelled_while_its_pod_starts,
        starts::a_worker_that_never_calls,
    ])
    .await;
}

#[tokio::test]
async fn a_turn_runs_in_a_pod_and_its_end_is_told() {
    let field = &Field::open(Plan::default()).await;
    all(cases![field;
        turns::a_worker_leaves_when_it_is_idle_and_its_pod_goes,
        turns::one_pod_serves_turn_after_turn,
        turns::a_pod_of_an_older_revision_serves_no_more,
        turns::a_worker_that_takes_too_much_memory,
        turns::a_worker_that_exits,
        turns::a_pod_that_is_evicted,
        turns::a_node_that_is_lost,
        turns::a_pod_that_somebody_deletes,
    ])
    .await;
}
