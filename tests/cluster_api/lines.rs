//! Concurrent turns of one conversation, or under one key, from both replicas.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    DEPTH_MAX,
    support::{Cluster, EventStream, OPERATOR, PATIENCE, Turn, eventually, kinds, said},
};

pub async fn a_key_posted_to_both_at_once_makes_one_turn(cluster: &Cluster) {
    for n in 0..8 {
        let key = format!("key-{n}-{:x}", rand::random::<u64>());
        let answers = join_all((0..4).map(|i| post_with_key(cluster, i % 2, &key, "hello"))).await;
        let ids: Vec<&Value> = answers.iter().map(|(_, turn)| &turn["id"]).collect();
        assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "{answers:?}");
        assert!(answers.iter().all(|(status, _)| *status == StatusCode::ACCEPTED), "{answers:?}");
        let (status, refused) = post_with_key(cluster, n % 2, &key, "something else").await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
        let conversation = answers[0].1["conversation_id"].as_str().unwrap();
        assert_eq!(turns_of(cluster, 0, conversation).await.len(), 1);
    }
}

pub async fn turns_posted_here_and_there_run_in_order(cluster: &Cluster) {
    let first = cluster.post(0, "demo", "/slow 5").await;
    let mut turns = vec![first.clone()];
    for n in 1..5 {
        turns.push(cluster.post_in(n % 2, &first.conversation, "demo", &format!("message {n}")).await);
    }
    let mut ends = String::new();
    for (n, turn) in turns.iter().enumerate() {
        assert_eq!(turn.json["ordinal"], n + 1);
        let events = cluster.watch_all(turn).await;
        assert_eq!(kinds(&events)[..2], ["accepted", "started"]);
        let (began, ended) = (&events[1].data["at"], &events.last().unwrap().data["at"]);
        assert!(began.as_str().unwrap() > ends.as_str(), "turn {n} began before the one before it had ended");
        ends = ended.as_str().unwrap().to_owned();
        if n > 0 {
            assert_eq!(said(&events), format!("Hello! You said: message {n}"));
        }
    }
}

pub async fn a_busy_conversation_rejects_and_says_where_its_turn_is(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/slow 600").await;
    cluster.worker_of(&turn).await;
    let body =
        json!({"agent": "demo", "input": "x", "conversation_id": turn.conversation, "if_busy": "reject"});
    for i in 0..2 {
        let (status, problem) = cluster.ask(i, Method::POST, "/v1/turns", Some(body.clone())).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert_eq!((&problem["code"], &problem["active_turn_id"]), (&json!("turn_active"), &json!(turn.id)));
        let url = problem["stream_url"].as_str().unwrap();
        assert!(url.contains(&turn.id), "{problem}");
        assert_eq!(cluster.get(1 - i, &format!("/v1/turns/{}", turn.id)).await["status"], "running");
    }
    cluster.cancel(1, &turn).await;
    assert_eq!(cluster.watch_all(&turn).await.last().unwrap().kind, "cancelled");
    cluster.watch_all(&cluster.post_json(0, body).await).await;
}

pub async fn an_interrupt_ends_what_runs_elsewhere_and_what_waits(cluster: &Cluster) {
    let running = cluster.post(0, "demo", "/slow 600").await;
    let runs_on = cluster.worker_of(&running).await.replica;
    let waiting = cluster.post_in(0, &running.conversation, "demo", "never said").await;
    let body = json!({"agent": "demo", "input": "stop that", "conversation_id": running.conversation,
        "if_busy": "interrupt"});
    let new = cluster.post_json(1 - runs_on, body).await;
    for turn in [&running, &waiting] {
        let events = cluster.watch_all(turn).await;
        let last = events.last().unwrap();
        assert_eq!(
            (last.kind.as_str(), &last.data["by"]),
            ("cancelled", &json!("interrupt")),
            "{}",
            last.data
        );
    }
    assert_eq!(kinds(&cluster.events(0, &waiting).await), ["accepted", "cancelled"]);
    assert_eq!(said(&cluster.watch_all(&new).await), "Hello! You said: stop that");
}

pub async fn a_conversation_takes_so_many_turns_and_no_more(cluster: &Cluster) {
    let first = cluster.post(0, "demo", "/slow 600").await;
    let body = json!({"agent": "demo", "input": "x", "conversation_id": first.conversation});
    let more = join_all((0..DEPTH_MAX + 3).map(|n| {
        let url = format!("{}/v1/turns", cluster.url(n % 2));
        http().post(url).bearer_auth(OPERATOR).json(&body).timeout(PATIENCE).send()
    }))
    .await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        more.into_iter().map(Result::unwrap).partition(|answer| answer.status() == StatusCode::ACCEPTED);
    assert_eq!((taken.len(), refused.len()), (DEPTH_MAX - 1, 4));
    for answer in refused {
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.headers().contains_key("retry-after"));
    }
    assert_eq!(turns_of(cluster, 1, &first.conversation).await.len(), DEPTH_MAX);
    let path = format!("/v1/conversations/{}", first.conversation);
    let mut seen = cluster.stream(0, &first.id, -1).await;
    let (status, _) = cluster.ask(1, Method::DELETE, &path, None).await;
    assert!(status.is_success(), "{status}");
    assert_eq!(seen.until_terminal(PATIENCE).await.last().unwrap().kind, "cancelled");
}

pub async fn a_client_that_leaves_cancels_its_turn_wherever_it_runs(cluster: &Cluster) {
    for client in 0..2 {
        let conversation = cluster.conversation_on(1 - client, "demo").await;
        let body = json!({"agent": "demo", "input": "/slow 600", "conversation_id": conversation,
            "stream": true, "on_disconnect": "cancel"});
        let url = format!("{}/v1/turns", cluster.url(client));
        let answer = http().post(url).bearer_auth(OPERATOR).json(&body).send().await.unwrap();
        let newest =
            turns_of(cluster, client, &conversation).await.into_iter().find(|turn| turn["ordinal"] == 2);
        let json = newest.expect("the turn was accepted before its first byte");
        let turn = Turn { id: json["id"].as_str().unwrap().to_owned(), conversation, json };
        let mut stream = EventStream::new(answer, &turn.id, -1);
        stream.until("delta", PATIENCE).await;
        drop(stream);
        let last = cluster.until(1 - client, &turn, "cancelled", PATIENCE).await;
        assert_eq!(last.data["by"], "disconnect");
        cluster.watch_all(&turn).await;
    }
    // And one that did not ask for it changes nothing.
    let turn = cluster.post(0, "demo", "/slow 15").await;
    let mut stream = cluster.stream(0, &turn.id, -1).await;
    stream.until("delta", PATIENCE).await;
    drop(stream);
    eventually("it completes", async || {
        let turn = cluster.get(1, &format!("/v1/turns/{}", turn.id)).await;
        (turn["status"] == "completed").then_some(())
    })
    .await;
}

async fn post_with_key(cluster: &Cluster, i: usize, key: &str, text: &str) -> (StatusCode, Value) {
    let asked = http().post(format!("{}/v1/turns", cluster.url(i))).bearer_auth(OPERATOR);
    let asked = asked.header("idempotency-key", key).json(&json!({"agent": "demo", "input": text}));
    let answer = asked.timeout(Duration::from_secs(60)).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn turns_of(cluster: &Cluster, i: usize, conversation: &str) -> Vec<Value> {
    let page = cluster.get(i, &format!("/v1/conversations/{conversation}/turns?limit=200")).await;
    page["items"].as_array().unwrap().clone()
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}
