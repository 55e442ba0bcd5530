//! Which worker a turn goes to, and how turns share a worker.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    answer_all, asking, living, python, share,
    support::{Cluster, PATIENCE, eventually},
    workers::{cancelled, completed},
};

pub async fn many_turns_at_once_have_one_process_and_each_its_own_answer(cluster: &Cluster) {
    share(cluster, "crowd", json!({})).await;
    let asking = asking(cluster, "crowd", 40).await;
    // All at the same time: each has asked, none has been answered.
    let workers = living(cluster, "crowd").await;
    assert_eq!(workers.len(), 1, "{workers:?}");
    let one = &workers[0];
    assert_eq!((&one["turns"], &one["state"]), (&json!(40), &json!("busy")), "{one}");
    assert_eq!((&one["turn_id"], &one["conversation_id"]), (&Value::Null, &Value::Null), "{one}");
    answer_all(cluster, &asking).await;
    let its = cluster.worker_of(&asking[0].0).await;
    assert_eq!(json!(its.listed), one["id"]);
    for (turn, _) in &asking {
        assert_eq!(cluster.worker_of(turn).await, its);
    }
    eventually("it is idle", async || {
        let one = cluster.worker(one["id"].as_str().unwrap()).await;
        (one["state"] == "idle" && one["turns"] == 0).then_some(())
    })
    .await;
}

pub async fn turns_wait_for_the_one_that_starts(cluster: &Cluster) {
    share(cluster, "starter", json!({"env": {"DEMO_STARTUP": "slow:1000"}})).await;
    let turns =
        join_all((0..10).map(async |n| cluster.post(0, "starter", &format!("/echo {n}")).await)).await;
    let mut pids = HashSet::new();
    for (n, turn) in turns.iter().enumerate() {
        assert_eq!(completed(&cluster.watch_all(turn).await), n.to_string());
        pids.insert(cluster.worker_of(turn).await.pid);
    }
    assert_eq!(pids.len(), 1, "each started its own");
}

/// A line was kept for each while it was accepted, and had to be let go.
pub async fn a_turn_that_waited_behind_another_has_the_worker_that_was_kept_for_it(cluster: &Cluster) {
    share(cluster, "patient", json!({})).await;
    let first = asking(cluster, "patient", 8).await;
    let behind = join_all(first.iter().map(async |(turn, _)| {
        cluster.post_in(cluster.living()[0], &turn.conversation, "patient", "/echo at last").await
    }))
    .await;
    answer_all(cluster, &first).await;
    for turn in &behind {
        let events = cluster.watch_all(turn).await;
        assert_eq!(completed(&events), "at last");
        let starts = events.iter().filter(|event| event.kind == "started").count();
        assert_eq!(starts, 1, "it was given back: {events:?}");
    }
}

pub async fn a_second_process_comes_when_the_first_is_full(cluster: &Cluster) {
    share(cluster, "trio", json!({"max_concurrent_turns": 3})).await;
    let first = asking(cluster, "trio", 3).await;
    let second = asking(cluster, "trio", 1).await;
    let turns: Vec<Value> = living(cluster, "trio").await.iter().map(|it| it["turns"].clone()).collect();
    assert_eq!(turns, [json!(3), json!(1)]);
    let full = cluster.worker_of(&first[0].0).await;
    assert_ne!(cluster.worker_of(&second[0].0).await.pid, full.pid);
    // Where there is room again, the oldest has it.
    answer_all(cluster, &first[..1]).await;
    let third = asking(cluster, "trio", 1).await;
    assert_eq!(cluster.worker_of(&third[0].0).await, full);
    answer_all(cluster, &[&first[1..], &second, &third].concat()).await;
}

/// Counted, not timed: so many whole turns come and go while another one talks as fast as it can.
pub async fn a_turn_that_talks_without_end_does_not_hold_up_the_others(cluster: &Cluster) {
    share(cluster, "chatty", json!({"limits": {"output_bytes": "1GiB"}})).await;
    let flood = cluster.post(0, "chatty", "/flood 100000000").await;
    cluster.until(0, &flood, "delta", PATIENCE).await;
    let mut said = 0;
    for n in 0..8 {
        let turn = cluster.post(0, "chatty", &format!("/echo {n}")).await;
        assert_eq!(completed(&cluster.watch_all(&turn).await), n.to_string());
        let now = cluster.get(0, &format!("/v1/turns/{}/events?limit=1&after={said}", flood.id)).await;
        assert_eq!(now["events"].as_array().unwrap().len(), 1, "it talks no more: {now}");
        said += 64;
    }
    assert_eq!(living(cluster, "chatty").await.len(), 1, "they did not share a worker");
    assert_eq!(cluster.cancel(0, &flood).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch(0, &flood).await, "client");
}

pub async fn each_turn_is_told_what_was_said_before(cluster: &Cluster) {
    // It remembers nothing, and says what it is told.
    let script = "
while turn := hear():
    told = ' '.join(f\"{said['role']}:{said['text']}\" for said in turn.get('history', []))
    say('delta', turn, text=f'[{told}]')
    say('complete', turn)
";
    cluster.put_agent("amnesiac", python(script, json!({"history": {"turns": 2}}))).await;
    let first = cluster.post(0, "amnesiac", "a").await;
    assert_eq!(completed(&cluster.watch_all(&first).await), "[]");
    let mut told = vec!["[]".to_owned()];
    for (n, text) in ["b", "c", "d"].into_iter().enumerate() {
        let turn = cluster.post_in(0, &first.conversation, "amnesiac", text).await;
        told.push(completed(&cluster.watch_all(&turn).await));
        assert_eq!(cluster.worker_of(&turn).await, cluster.worker_of(&first).await, "turn {n}");
    }
    assert_eq!(told[1], "[user:a assistant:[]]");
    assert_eq!(told[2], format!("[user:a assistant:{} user:b assistant:{}]", told[0], told[1]));
    assert_eq!(told[3], format!("[user:b assistant:{} user:c assistant:{}]", told[1], told[2]));
}

pub async fn a_new_revision_has_a_worker_of_its_own(cluster: &Cluster) {
    share(cluster, "revised", json!({})).await;
    let old = asking(cluster, "revised", 2).await;
    share(cluster, "revised", json!({"env": {"LOG": "more"}})).await;
    let new = cluster.post(0, "revised", "/echo new").await;
    assert_eq!(completed(&cluster.watch_all(&new).await), "new");
    assert_ne!(cluster.worker_of(&new).await.pid, cluster.worker_of(&old[0].0).await.pid);
    answer_all(cluster, &old).await;
    // And what is no spec is refused by its field.
    for (scope, turns) in [("conversation", 2), ("shared", 0), ("shared", 10_001)] {
        let spec =
            json!({"runtime": "process", "command": ["true"], "scope": scope, "max_concurrent_turns": turns});
        let (status, problem) = cluster.ask(0, Method::PUT, "/v1/agents/unsound", Some(spec)).await;
        assert!(
            status.is_client_error() && problem.to_string().contains("max_concurrent_turns"),
            "{problem}"
        );
    }
}

pub async fn a_worker_is_kept_for_its_idle_time_and_no_longer(cluster: &Cluster) {
    share(cluster, "fleeting", json!({"idle_ttl": "500ms"})).await;
    let asking = asking(cluster, "fleeting", 2).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    answer_all(cluster, &asking[..1]).await;
    // Longer than its idle time: a turn is longer than that, and it has one.
    let turn = cluster.post(0, "fleeting", "/slow 10").await;
    completed(&cluster.watch_all(&turn).await);
    assert_eq!(cluster.worker_of(&turn).await, worker);
    answer_all(cluster, &asking[1..]).await;
    let ended = cluster.ended(&worker.id).await;
    assert_eq!(ended["exit"], "exit code 0", "it was asked, not killed: {ended}");
    let next = cluster.post(0, "fleeting", "/echo next").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "next");
}
