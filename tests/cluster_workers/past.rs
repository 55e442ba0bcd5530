//! The history that a fresh worker gets: everything that was said, and how each turn ended.

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    support::{Cluster, PATIENCE, Turn},
    workers::{cancelled, completed, failed},
};

/// A worker that serves one turn and leaves, so that each turn has a fresh one. It shows what it was told.
const SHOW: &str = "
import json, sys
def say(kind, **fields): print(json.dumps({'type': kind, **fields}), flush=True)
def hear(): return json.loads(sys.stdin.readline())
say('ready')
turn = hear()
text = turn['input']['text']
if text == 'part':
    say('delta', text='the first '); say('content', text='half'); sys.exit(3)
elif text == 'fail':
    say('error', message='The model is overloaded.')
elif text == 'ask':
    say('ask', ask_id='q', prompt='Tea or coffee?', options=['tea', 'coffee'])
    say('delta', text='So you want ' + hear()['answer']['cup'])
    say('complete')
elif text == 'wait':
    say('delta', text='thinking')
    hear()
    say('cancelled')
elif text == 'long':
    say('complete', text='y' * 300000)
else:
    say('custom', name='told', data=[turn.get('history'), turn.get('history_omitted')])
    say('complete', text='ok')
";

fn show(history: Value) -> Value {
    json!({"runtime": "process", "command": ["python3", "-c", SHOW], "history": history})
}

/// Until the turn's worker has ended, so that a fresh worker gets the next turn.
async fn left(cluster: &Cluster, turn: &Turn) {
    let worker = cluster.worker_of(turn).await.id;
    cluster.ended(&worker).await;
}

/// Posts the turn after this one, for a fresh worker.
async fn next(cluster: &Cluster, i: usize, before: &Turn, input: &str) -> Turn {
    left(cluster, before).await;
    cluster.post_in(i, &before.conversation, before.json["agent"].as_str().unwrap(), input).await
}

/// What the turn after this one is told.
async fn told(cluster: &Cluster, i: usize, before: &Turn, input: &str) -> (Vec<Value>, Value) {
    let next = next(cluster, i, before, input).await;
    let events = cluster.watch_all(&next).await;
    completed(&events);
    let told = &events.iter().find(|event| event.kind == "custom").unwrap().data["data"];
    (told[0].as_array().cloned().unwrap_or_default(), told[1].clone())
}

pub async fn a_fresh_worker_is_told_what_was_said_and_how_it_ended(cluster: &Cluster) {
    cluster.put_agent("shower", show(json!({}))).await;
    let picture = json!([{"type": "image", "url": "https://example.org/cat.png", "n": 1.50}]);
    let input = json!({"text": "what is in this picture?", "attachments": picture});
    let first = cluster.post_json(0, json!({"agent": "shower", "input": input})).await;
    completed(&cluster.watch_all(&first).await);
    let part = next(cluster, 1, &first, "part").await;
    failed(&cluster.watch_all(&part).await, "worker_exited", "exit code 3");
    let fail = next(cluster, 1, &part, "fail").await;
    failed(&cluster.watch_all(&fail).await, "agent_error", "overloaded");
    let asking = next(cluster, 1, &fail, "ask").await;
    cluster.until(0, &asking, "ask", PATIENCE).await;
    assert_eq!(cluster.answer(0, &asking, "q", json!({"cup": "tea"})).await.0, StatusCode::ACCEPTED);
    completed(&cluster.watch_all(&asking).await);
    let waiting = next(cluster, 1, &asking, "wait").await;
    cluster.until(0, &waiting, "delta", PATIENCE).await;
    assert_eq!(cluster.cancel(0, &waiting).await, StatusCode::ACCEPTED);
    cancelled(&cluster.watch_all(&waiting).await, "client");

    let (history, omitted) = told(cluster, 0, &waiting, "and its collar?").await;
    assert_eq!(omitted, Value::Null);
    let shown: Vec<String> = history
        .iter()
        .map(|said| {
            let text = |field: &str| said[field].as_str().unwrap_or("-").to_owned();
            [text("role"), text("text"), text("status"), text("code"), text("by")].join("|")
        })
        .collect();
    assert_eq!(
        shown,
        [
            "user|what is in this picture?|completed|-|-",
            "assistant|ok|completed|-|-",
            "user|part|failed|worker_exited|-",
            "assistant|the first half|failed|worker_exited|-",
            "user|fail|failed|agent_error|-",
            "user|ask|completed|-|-",
            "assistant|So you want tea|completed|-|-",
            "user|wait|cancelled|-|client",
            "assistant|thinking|cancelled|-|client",
        ]
    );
    assert_eq!((&history[0]["attachments"], &history[0]["turn_id"]), (&picture, &json!(first.id)));
    let asked = json!([{
        "ask_id": "q", "prompt": "Tea or coffee?", "options": ["tea", "coffee"], "answer": {"cup": "tea"},
    }]);
    assert_eq!(history[5]["asks"], asked);
}

pub async fn a_long_answer_is_shortened_and_what_was_before_it_is_told(cluster: &Cluster) {
    cluster.put_agent("talker", show(json!({}))).await;
    let first = cluster.post(0, "talker", "remember: my name is Ada").await;
    completed(&cluster.watch_all(&first).await);
    let long = next(cluster, 1, &first, "long").await;
    cluster.watch_all(&long).await;
    let (history, omitted) = told(cluster, 0, &long, "what is my name?").await;
    assert_eq!(history.len(), 4, "{omitted}");
    assert_eq!(history[0]["text"], "remember: my name is Ada");
    let text = history[3]["text"].as_str().unwrap();
    assert!(text.len() < 256 * 1024 && text.starts_with("yyy") && text.ends_with("yyy"), "{}", text.len());
    assert!(text.contains("[… left out …]") && history[3]["shortened"] == true);
    assert_eq!(omitted, json!({"turns": 0, "shortened": 1}));
    let log: String = cluster.living().into_iter().map(|i| cluster.log(i)).collect();
    assert!(log.contains("the worker gets a part of the history"), "the log does not say so");
}

pub async fn a_worker_is_told_that_older_turns_are_left_out(cluster: &Cluster) {
    cluster.put_agent("briefly", show(json!({"turns": 1}))).await;
    let first = cluster.post(0, "briefly", "one").await;
    completed(&cluster.watch_all(&first).await);
    let second = next(cluster, 1, &first, "two").await;
    completed(&cluster.watch_all(&second).await);
    let (history, omitted) = told(cluster, 0, &second, "three").await;
    assert_eq!((history.len(), &history[0]["text"]), (2, &json!("two")));
    assert_eq!(omitted, json!({"turns": 1, "shortened": 0}));
}

pub async fn a_history_that_cannot_be_read_fails_its_turn(cluster: &Cluster) {
    cluster.put_agent("reader", show(json!({}))).await;
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    for broken in [
        "update turns set input = 'broken' where id = $1",
        "update turn_events set data = 'broken' where turn_id = $1 and kind = 'completed'",
    ] {
        let first = cluster.post(0, "reader", "one").await;
        cluster.watch_all(&first).await;
        // Read before the log is broken.
        left(cluster, &first).await;
        let id: uuid::Uuid = first.id.strip_prefix("turn_").unwrap().parse().unwrap();
        let mended = [
            "update turns set input = '{\"text\":\"one\"}' where id = $1",
            "update turn_events set data = '{\"text\":\"ok\",\"stop_reason\":\"end_turn\"}'
              where turn_id = $1 and kind = 'completed'",
        ];
        assert_eq!(sqlx::query(broken).bind(id).execute(&mut conn).await.unwrap().rows_affected(), 1);
        let second = cluster.post_in(1, &first.conversation, "reader", "two").await;
        let events = cluster.watch_all(&second).await;
        let error = failed(&events, "history_unavailable", "The history of this conversation");
        assert_eq!((&error["retryable"], &error["safe_to_retry"]), (&json!(false), &json!(true)));
        assert!(events.iter().all(|event| event.kind != "started"), "no worker began as if new");
        for mend in mended {
            sqlx::query(mend).bind(id).execute(&mut conn).await.unwrap();
        }
        let (history, _) = told(cluster, 0, &first, "three").await;
        assert_eq!(history[0]["text"], "one", "the conversation goes on");
        assert_eq!(history[2]["code"], "history_unavailable");
    }
}
