//! Workers written in a line of shell, and the checks that every failure must pass.

use serde_json::{Value, json};

use crate::support::{Cluster, Event, Outlet, Turn, kinds, said};

/// An agent whose workers run `script` once they have the turn: `$turn` is the turn's line, and
/// `say` writes a message.
pub fn shell(script: &str) -> Value {
    let frame = format!(
        r#"say() {{ printf '%s\n' "$1"; }}
say '{{"type":"ready"}}'
read -r turn
{script}"#
    );
    json!({"runtime": "process", "command": ["sh", "-c", frame]})
}

/// The same with more in its spec.
pub fn shell_with(script: &str, more: Value) -> Value {
    let mut spec = shell(script);
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

/// Fails unless the turn ended in this failure, told to a person. Returns the error.
pub fn failed<'a>(events: &'a [Event], code: &str, told: &str) -> &'a Value {
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), last.code()), ("failed", code), "{}", last.data);
    let message = last.message();
    assert!(message.contains(told), "`{message}` does not say `{told}`");
    let is_a_sentence = message.starts_with(char::is_uppercase) && message.ends_with('.');
    assert!(is_a_sentence && !message.contains(['\n', '/']), "`{message}` is nothing for a person");
    let error = &last.data["error"];
    assert!(error["retryable"].is_boolean() && error["safe_to_retry"].is_boolean(), "{error}");
    assert_eq!(error["attempt"], last.data["attempt"], "{error}");
    assert_eq!(error["trace_id"].as_str().map(str::len), Some(32), "{error}");
    let has_started = kinds(events).contains(&"started");
    let is_before_its_worker = ["guard_blocked", "input_too_long", "worker_startup_failed"].contains(&code);
    let reached = has_started && !is_before_its_worker;
    assert_eq!(error["started_at"].is_string(), reached, "{error}");
    error
}

/// The kinds of a turn's events that no program received. A host takes a turn, and then starts a program for it.
pub fn unstarted<'a>(cluster: &Cluster, end: &'a str) -> Vec<&'a str> {
    match cluster.outlet() {
        Outlet::Log => vec!["accepted", end],
        Outlet::Http => vec!["accepted", "started", end],
    }
}

/// Fails unless the turn was cancelled by them.
pub fn cancelled(events: &[Event], by: &str) {
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), &last.data["by"]), ("cancelled", &json!(by)), "{}", last.data);
}

/// Fails unless the turn was completed; what it said in pieces.
pub fn completed(events: &[Event]) -> String {
    let last = events.last().unwrap();
    assert_eq!(last.kind, "completed", "{}", last.data);
    said(events)
}

/// Fails unless the conversation goes on after `turn`.
pub async fn goes_on(cluster: &Cluster, i: usize, turn: &Turn) {
    let agent = turn.json["agent"].as_str().unwrap();
    let next = cluster.post_in(i, &turn.conversation, agent, "still there?").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "Hello! You said: still there?");
}

/// Compares whole events with the ones of `tests/cluster_workers/snapshots`.
pub fn snapshot(name: &str, events: &[Event]) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (field, shown) in [
        ("at", "[time]"),
        ("turn_id", "[turn]"),
        ("conversation_id", "[conversation]"),
        ("worker_id", "[worker]"),
        ("ask_id", "[ask]"),
        ("error.started_at", "[time]"),
        ("error.last_progress_at", "[time]"),
        ("error.trace_id", "[trace]"),
    ] {
        // What is null stays visible.
        let hide = move |value: insta::internals::Content, _: insta::internals::ContentPath<'_>| {
            if value.is_nil() { value } else { shown.into() }
        };
        settings.add_redaction(&format!("[].{field}"), insta::dynamic_redaction(hide));
    }
    let whole: Vec<&Value> = events.iter().map(|event| &event.data).collect();
    settings.bind(|| insta::assert_json_snapshot!(name, whole));
}
