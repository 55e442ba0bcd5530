//! Faults of one turn, and of the shared worker as a whole.

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    answer_all, asking, living, python, share,
    support::{Cluster, Event, OPERATOR, Outlet, PATIENCE, Turn, is_alive, kinds, said, signal},
    workers::{cancelled, completed, failed, unstarted},
};

/// The whole of each turn.
async fn watch_all(cluster: &Cluster, turns: &[(Turn, String)]) -> Vec<Vec<Event>> {
    join_all(turns.iter().map(|(turn, _)| cluster.watch_all(turn))).await
}

/// Fails unless a turn of this agent goes well, on another worker than `before`.
async fn goes_on_elsewhere(cluster: &Cluster, agent: &str, before: &str) {
    let next = cluster.post(0, agent, "/echo on").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "on");
    assert_ne!(cluster.worker_of(&next).await.id, before);
}

pub async fn a_crash_is_told_to_each_turn_once(cluster: &Cluster) {
    share(cluster, "crasher", json!({"expose_errors": true})).await;
    let asking = asking(cluster, "crasher", 6).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let crash = cluster.post(0, "crasher", "/crash 3").await;
    let told = "stopped unexpectedly (exit code 3)";
    let events = cluster.watch_all(&crash).await;
    failed(&events, "worker_exited", told);
    assert_eq!(said(&events), "About to crash.", "what it said first was lost");
    for events in watch_all(cluster, &asking).await {
        // Nobody's stderr is shown to the others.
        assert_eq!(failed(&events, "worker_exited", told)["detail"], json!(null));
        assert_eq!(kinds(&events), ["accepted", "started", "ask", "failed"]);
    }
    let ended = cluster.ended(&worker.id).await;
    assert_eq!(ended["exit"], "exit code 3");
    if cluster.outlet() == Outlet::Log {
        assert_eq!(ended["turns"], 0);
    }
    goes_on_elsewhere(cluster, "crasher", &worker.id).await;
}

pub async fn a_turn_is_run_again_only_where_it_said_nothing(cluster: &Cluster) {
    // The first process hears three turns: one speaks, one is silent, one kills it. The second answers.
    let script = "
first = not os.path.exists('tried')
while turn := hear():
    text = turn['input']['text']
    if not first:
        say('delta', turn, text='at last')
        say('complete', turn)
    elif text == 'speak':
        say('delta', turn, text='once')
    elif text == 'die':
        open('tried', 'w').close()
        os._exit(5)
";
    cluster.put_agent("careful", python(script, json!({"retry": "safe"}))).await;
    let spoke = cluster.post(0, "careful", "speak").await;
    cluster.until(0, &spoke, "delta", PATIENCE).await;
    let silent = cluster.post(0, "careful", "listen").await;
    cluster.until(0, &silent, "started", PATIENCE).await;
    let dead = cluster.post(0, "careful", "die").await;
    failed(&cluster.watch_all(&spoke).await, "worker_exited", "exit code 5");
    for turn in [silent, dead] {
        let events = cluster.watch_all(&turn).await;
        assert_eq!(completed(&events), "at last");
        assert_eq!(kinds(&events), ["accepted", "started", "started", "delta", "completed"]);
    }
}

pub async fn a_stuck_turn_ends_alone_and_its_worker_takes_no_other(cluster: &Cluster) {
    share(cluster, "stuck", json!({"timeouts": {"progress": "2s"}})).await;
    let asking = asking(cluster, "stuck", 2).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let stuck = cluster.post(0, "stuck", "/hang").await;
    assert_eq!(cluster.worker_of(&stuck).await, worker);
    failed(&cluster.watch_all(&stuck).await, "worker_unresponsive", "");
    goes_on_elsewhere(cluster, "stuck", &worker.id).await;
    assert!(is_alive(worker.pid), "it was ended under its other turns");
    answer_all(cluster, &asking).await;
    let ended = cluster.ended(&worker.id).await;
    assert_eq!(ended["exit"], "signal SIGKILL", "{ended}");
}

pub async fn a_turn_that_ignores_a_cancel_ends_alone(cluster: &Cluster) {
    share(cluster, "deaf", json!({})).await;
    let asking = asking(cluster, "deaf", 2).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let deaf = cluster.post(0, "deaf", "/freeze").await;
    cluster.until(0, &deaf, "started", PATIENCE).await;
    assert_eq!(cluster.cancel(0, &deaf).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&deaf).await, "client");
    assert!(is_alive(worker.pid), "it was ended under its other turns");
    goes_on_elsewhere(cluster, "deaf", &worker.id).await;
    answer_all(cluster, &asking).await;
    cluster.ended(&worker.id).await;
    assert!(!is_alive(worker.pid), "it lives on without authority");
}

pub async fn a_turn_beyond_its_output_ends_alone(cluster: &Cluster) {
    share(cluster, "terse", json!({"limits": {"output_bytes": "4KiB"}})).await;
    let asking = asking(cluster, "terse", 2).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let flood = cluster.post(0, "terse", "/flood 100000000").await;
    failed(&cluster.watch_all(&flood).await, "worker_protocol", "more than this agent may send in one turn");
    answer_all(cluster, &asking).await;
    cluster.ended(&worker.id).await;
    goes_on_elsewhere(cluster, "terse", &worker.id).await;
}

pub async fn a_line_that_is_nobodys_ends_all_turns(cluster: &Cluster) {
    share(cluster, "garbler", json!({"expose_errors": true})).await;
    for (command, told) in [
        ("/garbage", "not valid JSON"),
        ("/noturn", "names no turn"),
        ("/wrongturn", "message for another turn"),
    ] {
        let asking = asking(cluster, "garbler", 3).await;
        let worker = cluster.worker_of(&asking[0].0).await;
        let turn = cluster.post(0, "garbler", command).await;
        let mut all = watch_all(cluster, &asking).await;
        all.push(cluster.watch_all(&turn).await);
        for events in all {
            assert_eq!(failed(&events, "worker_protocol", told)["detail"], json!(null), "the line is shown");
        }
        cluster.ended(&worker.id).await;
        assert!(!is_alive(worker.pid));
    }
}

pub async fn a_line_that_is_somebodys_ends_that_turn_alone(cluster: &Cluster) {
    share(cluster, "fumbler", json!({})).await;
    let asking = asking(cluster, "fumbler", 3).await;
    let worker = cluster.worker_of(&asking[0].0).await;
    let turn = cluster.post(0, "fumbler", "/badfield").await;
    failed(&cluster.watch_all(&turn).await, "worker_protocol", "`text` is not a string");
    goes_on_elsewhere(cluster, "fumbler", &worker.id).await;
    answer_all(cluster, &asking).await;
    cluster.ended(&worker.id).await;
}

pub async fn a_failed_start_is_told_to_each_turn_that_waited(cluster: &Cluster) {
    // Late enough for all to wait for the same one.
    let script = "import time; time.sleep(1); raise SystemExit(4)";
    let spec = json!({"runtime": "process", "scope": "shared", "command": ["python3", "-c", script]});
    cluster.put_agent("stillborn", spec).await;
    let turns = join_all((0..5).map(|_| cluster.post(0, "stillborn", "hello"))).await;
    for turn in turns {
        let events = cluster.watch_all(&turn).await;
        failed(&events, "worker_startup_failed", "stopped while it was starting (exit code 4)");
        assert_eq!(kinds(&events), unstarted(cluster, "failed"));
    }
    let spec = json!({"runtime": "process", "scope": "shared", "command": ["/no/such/program"]});
    cluster.put_agent("stillborn", spec).await;
    let turn = cluster.post(0, "stillborn", "hello").await;
    failed(&cluster.watch_all(&turn).await, "worker_startup_failed", "was not found");
}

pub async fn a_start_that_takes_too_long_is_told_to_each_turn_that_waited(cluster: &Cluster) {
    share(cluster, "sleeper", json!({"env": {"DEMO_STARTUP": "never"}, "timeouts": {"startup": "4s"}})).await;
    let turns = join_all((0..5).map(|_| cluster.post(0, "sleeper", "hello"))).await;
    for turn in turns {
        failed(&cluster.watch_all(&turn).await, "worker_startup_failed", "");
    }
    // The next one gets another start, not this one.
    let next = cluster.post(0, "sleeper", "hello").await;
    failed(&cluster.watch_all(&next).await, "worker_startup_failed", "");
}

pub async fn an_idle_workers_death_is_nobodys_news(cluster: &Cluster) {
    share(cluster, "mortal", json!({})).await;
    let first = cluster.post(0, "mortal", "/echo one").await;
    let events = cluster.watch_all(&first).await;
    let worker = cluster.worker_of(&first).await;
    signal(worker.pid, Signal::SIGKILL);
    // At once: the turn must not be handed to the dead.
    goes_on_elsewhere(cluster, "mortal", &worker.id).await;
    assert_eq!(cluster.watch_all(&first).await, events);
    assert_eq!(living(cluster, "mortal").await.len(), 1);
}

pub async fn what_an_end_leaves_unsaid_is_late(cluster: &Cluster) {
    share(cluster, "talker", json!({})).await;
    let asking = asking(cluster, "talker", 1).await;
    let before = late_output(cluster).await;
    for command in ["/afterend", "/twoends"] {
        let turn = cluster.post(0, "talker", command).await;
        let events = cluster.watch_all(&turn).await;
        completed(&events);
        assert_eq!(cluster.worker_of(&turn).await, cluster.worker_of(&asking[0].0).await);
        assert_eq!(cluster.watch_all(&turn).await, events, "the log of an ended turn has changed");
    }
    answer_all(cluster, &asking).await;
    assert!(late_output(cluster).await >= before + 2, "it was dropped in silence");
}

/// How many messages came after their turn's end: at replica 0, or as hosts log them, once a turn.
async fn late_output(cluster: &Cluster) -> u64 {
    if cluster.outlet() == Outlet::Http {
        return cluster.late_at_hosts();
    }
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = http.get(format!("{}/metrics", cluster.url(0))).bearer_auth(OPERATOR);
    let text = asked.send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("lastword_late_output_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

pub async fn halves_of_characters_join_within_their_turn_alone(cluster: &Cluster) {
    // Two turns say their halves in turn: each other's would make another character.
    let script = r#"
turns = [hear(), hear()]
turns.sort(key=lambda turn: turn['input']['text'])
for text, turn in [('a\ud83c', 0), ('b\ud83d', 1), ('\udf89', 0), ('\ude00', 1)]:
    say('delta', turns[turn], text=text)
for turn in turns:
    say('complete', turn)
hear()
"#;
    cluster.put_agent("halving", python(script, json!({}))).await;
    let (first, second) = (cluster.post(0, "halving", "1").await, cluster.post(0, "halving", "2").await);
    assert_eq!(completed(&cluster.watch_all(&first).await), "a🎉");
    assert_eq!(completed(&cluster.watch_all(&second).await), "b😀");
}
