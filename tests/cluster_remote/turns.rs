//! Turns on `lastword work`: remote workers keep the same promises as all workers.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    host::{Host, Plan},
    remote_agent,
    support::{Cluster, OPERATOR, PATIENCE, children_of, eventually, is_alive, kinds, said},
    workers::{cancelled, completed, failed, goes_on, shell},
};

pub async fn a_turn_runs_on_a_worker_that_calls(cluster: &Cluster) {
    remote_agent(cluster, "caller", json!({})).await;
    // Accepted before anybody calls.
    let turn = cluster.post(1, "caller", "hi").await;
    let _host = Host::start(cluster, Plan::demo("caller", &[0]));
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "Hello! You said: hi");
    assert_eq!(kinds(&events)[..2], ["accepted", "started"]);
    let worker = cluster.worker(events[1].data["worker_id"].as_str().unwrap()).await;
    assert_eq!((&worker["runtime"], &worker["agent"]), (&json!("remote"), &json!("caller")));
    assert_eq!((&worker["state"], &worker["pid"]), (&json!("idle"), &json!(null)));
    assert_eq!(worker["pod"], json!(null), "it has a name, and that is no pod's: {worker}");
}

pub async fn a_conversation_keeps_its_process_and_a_fresh_one_is_told_what_was_said(cluster: &Cluster) {
    remote_agent(cluster, "rememberer", json!({})).await;
    let mut host = Host::start(cluster, Plan::demo("rememberer", &[0]));
    let first = cluster.post(0, "rememberer", "one").await;
    completed(&cluster.watch_all(&first).await);
    let process = host.workers();
    assert_eq!(process.len(), 1);
    let second = cluster.post_in(1, &first.conversation, "rememberer", "two").await;
    completed(&cluster.watch_all(&second).await);
    assert_eq!(host.workers(), process, "the same process has served both");
    host.terminate();
    assert!(host.wait_exit().await.success(), "{}", host.log());
    assert!(!is_alive(process[0]));

    let _other = Host::start(cluster, Plan::demo("rememberer", &[1]));
    let third = cluster.post_in(0, &first.conversation, "rememberer", "/recall").await;
    let known = said(&cluster.watch_all(&third).await);
    assert!(known.contains("You said: one") && known.contains("You said: two"), "{known}");
}

pub async fn a_flood_arrives_whole_and_in_order(cluster: &Cluster) {
    remote_agent(cluster, "flooder", json!({})).await;
    let _host = Host::start(cluster, Plan::demo("flooder", &[1]));
    let turn = cluster.post(0, "flooder", "/flood 3000").await;
    let events = cluster.watch_all(&turn).await;
    completed(&events);
    assert_eq!(events.iter().filter(|event| event.kind == "delta").count(), 3000);
}

pub async fn many_turns_run_at_once_on_processes_of_their_own(cluster: &Cluster) {
    remote_agent(cluster, "crowd", json!({})).await;
    let host = Host::start(cluster, Plan { flags: &["--concurrency", "4"], ..Plan::demo("crowd", &[0]) });
    ask_and_answer(cluster, "crowd", 4).await;
    assert_eq!(host.workers().len(), 4);
}

pub async fn a_shared_process_serves_many_turns_at_once(cluster: &Cluster) {
    remote_agent(cluster, "commune", json!({"scope": "shared"})).await;
    let mut host =
        Host::start(cluster, Plan { flags: &["--concurrency", "8"], ..Plan::demo("commune", &[0]) });
    ask_and_answer(cluster, "commune", 6).await;
    assert_eq!(host.workers().len(), 1);
    let crash = join_all((0..3).map(|_| cluster.post(0, "commune", "/ask it?"))).await;
    join_all(crash.iter().map(|turn| cluster.until(0, turn, "ask", PATIENCE))).await;
    let fatal = cluster.post(0, "commune", "/crash 7").await;
    for turn in crash.iter().chain([&fatal]) {
        failed(&cluster.watch_all(turn).await, "worker_exited", "exit code 7");
    }
    goes_on(cluster, 1, &fatal).await;
    host.terminate();
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

pub async fn a_host_has_no_more_processes_than_it_may(cluster: &Cluster) {
    remote_agent(cluster, "thrifty", json!({})).await;
    let flags = &["--concurrency", "2", "--workers-max", "3"];
    let host = Host::start(cluster, Plan { flags, ..Plan::demo("thrifty", &[0]) });
    let turns = join_all((0..12).map(|n| cluster.post(n % 2, "thrifty", "hi"))).await;
    let mut most = 0;
    let watching = async {
        loop {
            most = most.max(children_of(host.pid()).into_iter().filter(|pid| is_alive(*pid)).count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = watching => {}
        all = join_all(turns.iter().map(|turn| cluster.watch(0, turn))) => {
            all.iter().for_each(|events| drop(completed(events)));
        }
    }
    assert!((2..=3).contains(&most), "{most} processes at once");
    assert_eq!(host.workers().len(), 3, "as many are kept warm as may be");
}

pub async fn a_worker_over_its_memory_is_told_so(cluster: &Cluster) {
    remote_agent(cluster, "glutton", json!({"limits": {"memory": "64MiB"}})).await;
    let hoard = r#"echo '{"type":"ready"}'; read -r turn; head -c 100000000 /dev/zero | tail -c 100000000 | sleep 1000"#;
    let command = ["sh", "-c", hoard].map(str::to_owned).to_vec();
    let host = Host::start(cluster, Plan { command, ..Plan::demo("glutton", &[0]) });
    let turn = cluster.post(1, "glutton", "hello").await;
    failed(&cluster.watch_all(&turn).await, "worker_exited", "out of memory (limit 64MiB)");
    // Of version 2 a group that holds others too is divided by nobody.
    let has_groups = lastword::host::process::cgroup::probe() == Ok(1);
    let said = "each worker has a control group of its own";
    assert_eq!(host.log().contains(said), has_groups, "{}", host.log());
}

/// So many turns that wait for an answer at the same time, and get their own.
async fn ask_and_answer(cluster: &Cluster, agent: &str, count: usize) {
    let turns = join_all((0..count).map(|n| {
        let text = format!("/ask {n}?");
        async move { cluster.post(n % 2, agent, &text).await }
    }))
    .await;
    let asks = join_all(turns.iter().map(|turn| cluster.until(0, turn, "ask", PATIENCE))).await;
    for (n, (turn, ask)) in turns.iter().zip(&asks).enumerate() {
        let ask_id = ask.data["ask_id"].as_str().unwrap();
        let (status, why) = cluster.answer(n % 2, turn, ask_id, json!(format!("{n}!"))).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{why}");
    }
    for (n, turn) in turns.iter().enumerate() {
        assert_eq!(completed(&cluster.watch_all(turn).await), format!("You answered: {n}!"));
    }
}

pub async fn a_crash_is_told_with_its_exit_code(cluster: &Cluster) {
    remote_agent(cluster, "crasher", json!({})).await;
    let _host = Host::start(cluster, Plan::demo("crasher", &[0]));
    let turn = cluster.post(0, "crasher", "/crash 3").await;
    failed(&cluster.watch_all(&turn).await, "worker_exited", "exit code 3");
    goes_on(cluster, 1, &turn).await;
}

pub async fn a_program_that_is_missing_fails_its_turn(cluster: &Cluster) {
    remote_agent(cluster, "absent", json!({})).await;
    let command = vec!["no-such-program-anywhere".to_owned()];
    let _host = Host::start(cluster, Plan { command, ..Plan::demo("absent", &[0]) });
    let turn = cluster.post(0, "absent", "hi").await;
    failed(&cluster.watch_all(&turn).await, "worker_startup_failed", "");
}

pub async fn a_line_that_is_no_json_fails_its_turn(cluster: &Cluster) {
    remote_agent(cluster, "babbler", json!({})).await;
    let _host = Host::start(cluster, Plan::demo("babbler", &[0]));
    let turn = cluster.post(0, "babbler", "/garbage").await;
    failed(&cluster.watch_all(&turn).await, "worker_protocol", "not valid JSON");
}

pub async fn an_empty_reply_is_no_success(cluster: &Cluster) {
    remote_agent(cluster, "mute", json!({})).await;
    let _host = Host::start(cluster, Plan::demo("mute", &[0]));
    let turn = cluster.post(0, "mute", "/silent").await;
    failed(&cluster.watch_all(&turn).await, "empty_reply", "");
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_guard_stops_a_turn_before_any_worker_sees_it(cluster: &Cluster) {
    let guards = json!({"guards": [{"kind": "max_chars", "limit": 20}]});
    remote_agent(cluster, "guarded", guards).await;
    let host = Host::start(cluster, Plan::demo("guarded", &[0]));
    let turn = cluster.post(0, "guarded", &"x".repeat(21)).await;
    failed(&cluster.watch_all(&turn).await, "guard_blocked", "too long");
    assert_eq!(host.workers(), [0; 0]);
    goes_on_short(cluster, &turn.conversation).await;
}

async fn goes_on_short(cluster: &Cluster, conversation: &str) {
    let next = cluster.post_in(1, conversation, "guarded", "ok").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "Hello! You said: ok");
}

pub async fn a_cancel_comes_through_the_other_replica(cluster: &Cluster) {
    remote_agent(cluster, "obedient", json!({})).await;
    let host = Host::start(cluster, Plan::demo("obedient", &[0]));
    let turn = cluster.post(0, "obedient", "/slow 6000").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    let process = host.workers();
    assert_eq!(cluster.cancel(1, &turn).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "client");
    goes_on(cluster, 1, &turn).await;
    assert_eq!(host.workers(), process, "one that obeyed is kept");
}

pub async fn a_worker_that_ignores_a_cancel_is_ended(cluster: &Cluster) {
    remote_agent(cluster, "stubborn", json!({})).await;
    let host = Host::start(cluster, Plan::demo("stubborn", &[0]));
    let turn = cluster.post(0, "stubborn", "/freeze").await;
    cluster.until(1, &turn, "started", PATIENCE).await;
    let process = eventually("a process runs", async || host.workers().first().copied()).await;
    assert_eq!(cluster.cancel(0, &turn).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "client");
    eventually("the process is ended", async || (!is_alive(process)).then_some(())).await;
    goes_on(cluster, 1, &turn).await;
}

pub async fn an_answer_comes_through_the_other_replica(cluster: &Cluster) {
    remote_agent(cluster, "asker", json!({})).await;
    let _host = Host::start(cluster, Plan::demo("asker", &[0]));
    ask_and_answer(cluster, "asker", 1).await;
    ask_and_answer(cluster, "asker", 1).await;
}

pub async fn a_killed_host_is_told_and_leaves_no_process(cluster: &Cluster) {
    remote_agent(cluster, "orphan", json!({})).await;
    let mut host = Host::start(cluster, Plan::demo("orphan", &[0]));
    let turn = cluster.post(1, "orphan", "/slow 6000").await;
    let mut stream = cluster.stream(1, &turn.id, -1).await;
    stream.until("delta", PATIENCE).await;
    let process = host.workers();
    host.kill();
    let killed = std::time::Instant::now();
    let events = stream.until_terminal(Duration::from_secs(10)).await;
    eprintln!("a killed host was told after {:.1} s", killed.elapsed().as_secs_f64());
    assert_eq!(events.last().unwrap().code(), "worker_lost");
    failed(&cluster.watch_all(&turn).await, "worker_lost", "connection to the worker");
    assert_eq!(process.len(), 1);
    eventually("its process is gone", async || (!is_alive(process[0])).then_some(())).await;
    let _other = Host::start(cluster, Plan::demo("orphan", &[1]));
    goes_on(cluster, 0, &turn).await;
}

pub async fn a_host_that_leaves_lets_its_turn_end(cluster: &Cluster) {
    remote_agent(cluster, "leaver", json!({})).await;
    let mut host =
        Host::start(cluster, Plan { flags: &["--concurrency", "2"], ..Plan::demo("leaver", &[0]) });
    let turn = cluster.post(0, "leaver", "/slow 30").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    host.terminate();
    let words: String = (1..=30).map(|n| format!("word{n} ")).collect();
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), words);
    assert!(host.wait_exit().await.success(), "{}", host.log());
    let worker = cluster.ended(events[1].data["worker_id"].as_str().unwrap()).await;
    assert_eq!(worker["exit"], "left");
}

pub async fn a_host_whose_drain_is_over_interrupts_what_runs(cluster: &Cluster) {
    remote_agent(cluster, "hasty", json!({})).await;
    let mut host = Host::start(cluster, Plan { flags: &["--drain", "200ms"], ..Plan::demo("hasty", &[0]) });
    let turn = cluster.post(0, "hasty", "/slow 6000").await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    host.terminate();
    failed(&cluster.watch_all(&turn).await, "interrupted", "");
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

pub async fn an_operator_stops_a_host(cluster: &Cluster) {
    remote_agent(cluster, "stopped", json!({})).await;
    let mut host = Host::start(cluster, Plan { command: quiet_worker(), ..Plan::demo("stopped", &[0]) });
    let turn = cluster.post(1, "stopped", "x").await;
    let started = cluster.until(1, &turn, "started", PATIENCE).await;
    let path = format!("/v1/workers/{}/stop", started.data["worker_id"].as_str().unwrap());
    assert_eq!(cluster.ask(1, Method::POST, &path, None).await.0, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&turn).await, "operator");
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

/// A worker in a line of shell that says nothing until it is told to stop.
fn quiet_worker() -> Vec<String> {
    let script = r#"read -r order; say '{"type":"cancelled"}'; read -r end"#;
    serde_json::from_value(shell(script)["command"].clone()).unwrap()
}

pub async fn a_host_passes_on_the_variables_that_its_operator_names(cluster: &Cluster) {
    let show = r#"
say "{\"type\":\"delta\",\"text\":\"${ONE-unset} ${TWO-unset} ${LASTWORD_URL-unset}\"}"
say '{"type":"complete"}'"#;
    let command: Vec<String> = serde_json::from_value(shell(show)["command"].clone()).unwrap();
    for (agent, flags, wanted) in
        [("open", &[][..], "1 2 unset"), ("picky", &["--env-pass", "ONE,THREE"][..], "1 unset unset")]
    {
        remote_agent(cluster, agent, json!({})).await;
        let env = &[("ONE", "1"), ("TWO", "2")];
        let plan = Plan { command: command.clone(), flags, env, ..Plan::demo(agent, &[0]) };
        let _host = Host::start(cluster, plan);
        let events = cluster.watch_all(&cluster.post(0, agent, "x").await).await;
        assert_eq!(completed(&events), wanted);
    }
}

pub async fn a_host_passes_on_what_was_said_as_it_came(cluster: &Cluster) {
    let exact = r#"{"z":[1.0,123456789012345678901234567890],"a":{"c":1E5,"b":1}}"#;
    let script = format!(
        r#"
say '{{"type":"custom","name":"exact","data":{exact}}}'
say '{{"type":"complete","usage":{exact}}}'"#
    );
    let command: Vec<String> = serde_json::from_value(shell(&script)["command"].clone()).unwrap();
    remote_agent(cluster, "exact", json!({})).await;
    let _host = Host::start(cluster, Plan { command, ..Plan::demo("exact", &[0]) });
    let turn = cluster.post(0, "exact", "x").await;
    cluster.watch_all(&turn).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let log = http.get(format!("{}/v1/turns/{}/events", cluster.url(1), turn.id)).bearer_auth(OPERATOR);
    let log = log.header("accept", "application/json").send().await.unwrap().text().await.unwrap();
    for field in ["data", "usage"] {
        assert!(log.contains(&format!(r#""{field}":{exact}"#)), "{field}: {log}");
    }
}

pub async fn a_character_cut_in_halves_arrives_whole(cluster: &Cluster) {
    let script = r#"
say '{"type":"delta","text":"a\ud83c"}'
say '{"type":"delta","text":"\udf89b\udf89\ud83c"}'
say '{"type":"delta","text":"c"}'
say '{"type":"complete"}'"#;
    for (agent, more) in [("cutter", json!({})), ("cutters", json!({"scope": "shared"}))] {
        remote_agent(cluster, agent, more).await;
        let tagged = r#"id=$(printf '%s' "$turn" | sed 's/.*"turn_id":"\([^"]*\)".*/\1/')
say() { printf '%s\n' "{\"turn_id\":\"$id\",${1#?}"; }"#;
        let spec = shell(&format!("{tagged}{script}"));
        let command: Vec<String> = serde_json::from_value(spec["command"].clone()).unwrap();
        let _host = Host::start(cluster, Plan { command, ..Plan::demo(agent, &[0]) });
        let events = cluster.watch_all(&cluster.post(0, agent, "x").await).await;
        assert_eq!(completed(&events), "a🎉b\u{fffd}\u{fffd}c");
    }
}
