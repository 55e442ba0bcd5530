//! Readers on one replica, events on the other.

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Cluster, OPERATOR, PATIENCE, said};

pub async fn a_conversation_is_told_alike_on_both(cluster: &Cluster) {
    let first = cluster.post(0, "demo", "one").await;
    let readers =
        [thread(cluster, 0, &first.conversation, None), thread(cluster, 1, &first.conversation, None)];
    let posts = async {
        let mut wanted = ids(1, cluster.watch(1, &first).await.len());
        for ordinal in 2..4 {
            let turn = cluster.post_in(ordinal % 2, &first.conversation, "demo", "more").await;
            wanted.extend(ids(ordinal, cluster.watch(0, &turn).await.len()));
        }
        wanted
    };
    let [one, other] = readers;
    let (one, other, wanted) = tokio::join!(one, other, posts);
    assert_eq!(one, wanted);
    assert_eq!(other, wanted);
    // A cursor of one replica, in the midst of the second turn, goes on there on the other.
    let at = wanted.iter().position(|id| id == "2.1").unwrap();
    let rest = thread(cluster, 1, &first.conversation, Some("2.1")).await;
    assert_eq!(rest, wanted[at + 1..]);
}

pub async fn a_cursor_of_one_replica_holds_on_the_other(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "hello").await;
    let events = cluster.watch_all(&turn).await;
    let last = events.last().unwrap().seq;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for i in 0..2 {
        for cursor in [0, last / 2, last - 1] {
            let rest = cluster.stream(i, &turn.id, cursor).await.until_terminal(PATIENCE).await;
            assert_eq!(rest, events[usize::try_from(cursor).unwrap() + 1..]);
        }
        let at = async |cursor: i64| {
            let url = format!("{}/v1/turns/{}/events", cluster.url(i), turn.id);
            let asked = http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream");
            asked.header("last-event-id", cursor).timeout(PATIENCE).send().await.unwrap().status()
        };
        assert_eq!(at(last).await, StatusCode::NO_CONTENT);
        assert_eq!(at(last + 1).await, StatusCode::BAD_REQUEST);
    }
}

pub async fn an_agent_put_here_is_used_there(cluster: &Cluster) {
    let spec = |greeting: &str| {
        let script = format!(
            r#"echo '{{"type":"ready"}}'
            while read -r line; do
              case "$line" in *'"type":"turn"'*)
                id="${{line#*turn_id\":\"}}"; id="${{id%%\"*}}"
                echo "{{\"type\":\"delta\",\"turn_id\":\"$id\",\"text\":\"{greeting}\"}}"
                echo "{{\"type\":\"complete\",\"turn_id\":\"$id\"}}";;
              esac
            done"#
        );
        json!({"runtime": "process", "command": ["sh", "-c", script]})
    };
    for (i, greeting) in ["good morning", "good evening"].into_iter().enumerate() {
        let (status, put) = cluster.ask(i, Method::PUT, "/v1/agents/greeter", Some(spec(greeting))).await;
        assert!(status.is_success(), "{status} {put}");
        let turn = cluster.post(1 - i, "greeter", "hello").await;
        assert_eq!(said(&cluster.watch_all(&turn).await), greeting);
        assert_eq!(cluster.get(1 - i, "/v1/agents/greeter").await["revision"], i + 1);
    }
}

pub async fn a_retry_asked_for_there_cites_the_turn_that_failed_here(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/error not now").await;
    assert_eq!(cluster.watch_all(&turn).await.last().unwrap().code(), "agent_error");
    let (status, again) = cluster.ask(1, Method::POST, &format!("/v1/turns/{}/retry", turn.id), None).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{again}");
    assert_eq!(
        (&again["retry_of"], &again["conversation_id"]),
        (&json!(turn.id), &json!(turn.conversation)),
        "{again}"
    );
    let id = again["id"].as_str().unwrap();
    let events = cluster.stream(0, id, -1).await.until_terminal(PATIENCE).await;
    assert_eq!(events.last().unwrap().code(), "agent_error", "it was asked the same");
}

pub async fn both_list_the_same(cluster: &Cluster) {
    cluster.demo_agent("listed", json!({})).await;
    let mut turns = Vec::new();
    for (i, text) in ["hello", "/error no", "hello", "/crash", "hello"].into_iter().enumerate() {
        let turn = cluster.post(i % 2, "listed", text).await;
        cluster.watch(1, &turn).await;
        turns.push(turn.id);
    }
    for i in 0..2 {
        let mut seen = Vec::new();
        let mut path = "/v1/turns?agent=listed&limit=2".to_owned();
        loop {
            // Each page from another replica than the one before.
            let page = cluster.get((i + seen.len() / 2) % 2, &path).await;
            seen.extend(page["items"].as_array().unwrap().iter().map(id_of));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/turns?agent=listed&limit=2&cursor={next}");
        }
        seen.reverse();
        assert_eq!(seen, turns);
        let failed = cluster.get(i, "/v1/turns?agent=listed&status=failed").await;
        let failed: Vec<String> = failed["items"].as_array().unwrap().iter().map(id_of).collect();
        assert_eq!(failed, [turns[3].clone(), turns[1].clone()]);
    }
}

fn id_of(turn: &Value) -> String {
    turn["id"].as_str().unwrap().to_owned()
}

fn ids(ordinal: usize, events: usize) -> Vec<String> {
    (0..events).map(|seq| format!("{ordinal}.{seq}")).collect()
}

/// The ids of a conversation's events after a cursor, until its third turn has ended.
async fn thread(cluster: &Cluster, i: usize, conversation: &str, after: Option<&str>) -> Vec<String> {
    let url = format!("{}/v1/conversations/{conversation}/events", cluster.url(i));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut asked = http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream");
    if let Some(after) = after {
        asked = asked.header("last-event-id", after);
    }
    let answer = asked.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut events = Box::pin(answer.bytes_stream().eventsource());
    let mut seen = Vec::new();
    loop {
        let event = timeout(PATIENCE, events.next()).await.expect("the thread goes on");
        let event = event.expect("it never ends by itself").unwrap();
        seen.push(event.id.clone());
        if event.id.starts_with("3.") && event.event == "completed" {
            return seen;
        }
    }
}
