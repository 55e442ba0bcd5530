//! Killed replicas: their turns end, their clients go to other replicas, and none of their processes survives.

use std::{process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    time::timeout,
};

use crate::{
    pair, read_some, read_until_cut, resume,
    support::{Cluster, OPERATOR, PATIENCE, Plan, eventually, figures, is_alive, kinds, said, signal},
};

/// How long a last word may take here, where several suites share the machine. What it takes on a
/// quiet one is measured by the benchmark.
const VERDICT_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_takes_no_turn_and_no_client_with_it() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let env = json!({"env": {"DEMO_STARTUP": "slow:3000"}});
    cluster.demo_agent("sluggish", env).await;
    the_other_speaks_the_last_word(&cluster).await;
    a_client_goes_on_at_the_other(&cluster).await;
    a_starting_turn_is_started_elsewhere(&cluster).await;
    no_worker_outlives_its_replica_and_its_guard(&cluster).await;
}

async fn the_other_speaks_the_last_word(cluster: &Cluster) {
    let (doomed, other) = pair(cluster).await;
    let turn = cluster.post_on(doomed, "demo", "/slow 600").await;
    let worker = cluster.worker_of(&turn).await;
    let mut stream = cluster.stream(other, &turn.id, -1).await;
    read_some(&mut stream, 3).await;
    cluster.kill(doomed);
    let rest = stream.until_terminal(VERDICT_MAX).await;
    let last = rest.last().unwrap();
    assert_eq!((last.kind.as_str(), last.code()), ("failed", "replica_lost"), "{}", last.data);
    assert_eq!(last.data["error"]["attempt"], 1);
    assert_eq!(last.data["error"]["safe_to_retry"], false);
    assert!(last.data["error"]["last_progress_at"].is_string(), "{}", last.data);
    cluster.watch_all(&turn).await;
    eventually("its worker is gone", async || (!is_alive(worker.pid)).then_some(())).await;

    // The conversation goes on, and the new worker is told what was said.
    let next = cluster.post_in(other, &turn.conversation, "demo", "/recall").await;
    let events = cluster.watch_all(&next).await;
    let known = said(&events);
    assert!(known.contains("Hello! You said: hello") && known.contains("/slow 600"), "{known}");
}

async fn a_client_goes_on_at_the_other(cluster: &Cluster) {
    let (doomed, other) = pair(cluster).await;
    let turn = cluster.post_on(other, "demo", "/slow 40").await;
    let mut stream = cluster.stream(doomed, &turn.id, -1).await;
    let mut seen = read_some(&mut stream, 5).await;
    cluster.kill(doomed);
    let (more, is_announced) = read_until_cut(&mut stream).await;
    assert!(!is_announced, "a killed replica said good-bye");
    seen.extend(more);
    let seen = resume(cluster, other, &turn.id, seen).await;
    assert_eq!(seen.last().unwrap().kind, "completed");
    assert_eq!(seen, cluster.watch_all(&turn).await);
    let words: String = (1..=40).map(|n| format!("word{n} ")).collect();
    assert_eq!(said(&seen), words);
}

async fn a_starting_turn_is_started_elsewhere(cluster: &Cluster) {
    let (one, other) = pair(cluster).await;
    let turn = cluster.post(one, "sluggish", "hello").await;
    let holder = eventually("a worker is starting", async || {
        let workers = cluster.workers().await;
        let mut ours =
            workers.iter().filter(|worker| worker["conversation_id"] == turn.conversation.as_str());
        Some(ours.next()?["replica_id"].as_str()?.to_owned())
    });
    let doomed = cluster.replica_of(&holder.await).await;
    let client = if doomed == one { other } else { one };
    let mut stream = cluster.stream(client, &turn.id, -1).await;
    cluster.kill(doomed);
    let events = stream.until_terminal(PATIENCE).await;
    let started: Vec<_> = events.iter().filter(|event| event.kind == "started").collect();
    assert_eq!(started.len(), 1, "{:?}", kinds(&events));
    assert_eq!(started[0].data["attempt"], 2);
    assert_eq!(events.last().unwrap().kind, "completed");
    assert_eq!(said(&events), "Hello! You said: hello");
    assert_eq!(cluster.worker_of(&turn).await.replica, client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_two_replicas_died_with_is_not_tried_on_a_third() {
    let cluster = &Cluster::start(3).await;
    let env = json!({"env": {"DEMO_STARTUP": "slow:30000"}});
    cluster.demo_agent("sluggish", env).await;
    let turn = cluster.post(0, "sluggish", "hello").await;
    let mut doomed = Vec::new();
    for _ in 0..2 {
        let holder = eventually("a worker is starting", async || {
            let workers = cluster.workers().await;
            let ours = workers.iter().filter(|worker| worker["conversation_id"] == *turn.conversation);
            let mut holders: Vec<_> = ours.filter_map(|worker| worker["replica_id"].as_str()).collect();
            holders.retain(|holder| !doomed.iter().any(|(_, dead)| dead == holder));
            Some(holders.pop()?.to_owned())
        })
        .await;
        let i = cluster.replica_of(&holder).await;
        cluster.kill(i);
        doomed.push((i, holder));
    }
    let events = cluster.watch_all(&turn).await;
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), last.code()), ("failed", "replica_lost"), "{}", last.data);
    assert_eq!(
        (&last.data["error"]["attempt"], &last.data["error"]["safe_to_retry"]),
        (&json!(2), &json!(true))
    );
    assert_eq!(kinds(&events), ["accepted", "failed"]);
}

async fn no_worker_outlives_its_replica_and_its_guard(cluster: &Cluster) {
    let (doomed, other) = pair(cluster).await;
    let turn = cluster.post_on(doomed, "demo", "/freeze").await;
    let worker = cluster.worker_of(&turn).await;
    let guard = parent_of(worker.pid);
    assert_eq!(parent_of(guard), cluster.pid(doomed), "the guard is not between them");
    signal(guard, Signal::SIGKILL);
    cluster.kill(doomed);
    let events = cluster.stream(other, &turn.id, -1).await.until_terminal(VERDICT_MAX).await;
    let code = events.last().unwrap().code().to_owned();
    // The replica may have seen its guard die first.
    assert!(["replica_lost", "worker_exited"].contains(&code.as_str()), "{code}");
    eventually("the worker is gone", async || (!is_alive(worker.pid)).then_some(())).await;
}

/// `lastword chat` is told two URLs and reads from the first. That one's only place is taken, so its turn
/// runs on the one that is not killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_chat_goes_on_at_the_other() {
    let cluster = Cluster::with(Plan { turns_max: 1, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let (doomed, other) = pair(&cluster).await;
    cluster.post_on(doomed, "demo", "/slow 6000").await;
    let mut chat = cluster.command("chat");
    chat.args(["--url", &cluster.url(doomed), "--url", &cluster.url(other)]);
    chat.env("LASTWORD_TOKEN", OPERATOR).args(["--agent", "demo", "/slow 60"]);
    chat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut chat = tokio::process::Command::from(chat).kill_on_drop(true).spawn().unwrap();
    let (mut stdout, mut answer) = (BufReader::new(chat.stdout.take().unwrap()), Vec::new());
    for _ in 0..5 {
        let read = stdout.read_until(b' ', &mut answer);
        timeout(PATIENCE, read).await.expect("the answer begins").unwrap();
    }
    cluster.kill(doomed);
    let done = timeout(PATIENCE, async {
        stdout.read_to_end(&mut answer).await.unwrap();
        chat.wait_with_output().await.unwrap()
    });
    let done = done.await.expect("the chat ends");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(0), "{told}");
    let words: String = (1..=60).map(|n| format!("word{n} ")).collect();
    assert_eq!(String::from_utf8(answer).unwrap().trim_end(), words.trim_end(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_speaks_for_the_two_that_were_killed() {
    let cluster = Cluster::start(3).await;
    cluster.demo_agent("demo", json!({})).await;
    let mut turns = Vec::new();
    for i in 0..3 {
        let text = if i == 2 { "/slow 60" } else { "/slow 600" };
        turns.push(cluster.post_on(i, "demo", text).await);
    }
    let waiting = cluster.post_in(0, &turns[0].conversation, "demo", "after the storm").await;
    let mut streams = Vec::new();
    for turn in &turns {
        let mut stream = cluster.stream(2, &turn.id, -1).await;
        read_some(&mut stream, 2).await;
        streams.push(stream);
    }
    cluster.kill(0);
    cluster.kill(1);
    for (i, stream) in streams.iter_mut().enumerate() {
        let rest = stream.until_terminal(if i == 2 { PATIENCE } else { VERDICT_MAX }).await;
        let last = rest.last().unwrap();
        let wanted = if i == 2 { ("completed", "") } else { ("failed", "replica_lost") };
        assert_eq!((last.kind.as_str(), last.code()), wanted, "turn {i}: {}", last.data);
    }
    let events = cluster.watch_all(&waiting).await;
    assert_eq!(said(&events), "Hello! You said: after the storm");
}

/// The short form of `make figures`, for every run; the machine may be slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_told_by_the_other_replica_within_a_second() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let figures = figures::worker_crashes(&cluster, "demo", 10).await;
    eprintln!("count, p50, p99, max in ms: {figures}");
    // Without the doorbell a reader looks by itself, once a second.
    let is_deaf = std::env::var("LASTWORD_DOORBELL").is_ok_and(|set| set == "off");
    let at_most = Duration::from_secs(if is_deaf { 3 } else { 1 });
    assert!(figures.max() < at_most, "{figures}");
}

fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().nth(1).unwrap().parse().unwrap()
}
