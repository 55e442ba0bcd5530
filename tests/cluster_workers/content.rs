//! What workers say and clients send: all of it arrives, whole.

use serde_json::{Value, json};

use crate::{
    support::{Cluster, kinds},
    workers::{completed, failed, shell, snapshot},
};

pub async fn a_whole_answer_looks_like_this(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "good day").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "Hello! You said: good day");
    snapshot("answer", &events);
}

pub async fn every_kind_of_message_becomes_an_event(cluster: &Cluster) {
    for (command, kind) in [
        ("/notice Lunch is ready.", "content"),
        ("/ephemeral Just a second.", "ephemeral"),
        ("/status reading", "status"),
        ("/unknown", "custom"),
    ] {
        let turn = cluster.post(1, "demo", command).await;
        let events = cluster.watch_all(&turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{command}");
        let spoken: Vec<Value> =
            events.iter().filter(|event| event.kind == kind).map(|event| event.data.clone()).collect();
        let [one] = &spoken[..] else { panic!("{command}: {:?}", kinds(&events)) };
        match kind {
            "content" => {
                assert_eq!(one["text"], "Lunch is ready.");
                assert_eq!(events.last().unwrap().text(), "Lunch is ready.", "it is the answer");
            }
            "ephemeral" => {
                assert_eq!(one["text"], "Just a second.");
                assert!(!events.last().unwrap().text().contains("second"), "it is no part of the answer");
            }
            "status" => assert_eq!(one["state"], "reading"),
            _ => {
                let whole = json!({"type": "sparkle", "turn_id": turn.id, "colour": "gold", "n": [1, 2]});
                assert_eq!((&one["name"], &one["data"]), (&json!("sparkle"), &whole));
            }
        }
    }
}

pub async fn a_flood_arrives_whole_and_in_order(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/flood 5000").await;
    let wanted: String = (1..=5000).map(|n| format!("{n} ")).collect();
    let events = cluster.watch_all(&turn).await;
    assert!(completed(&events) == wanted, "not the whole flood");
    assert!(events.last().unwrap().text() == wanted, "the answer is not what was said");
}

pub async fn characters_of_many_bytes_arrive_intact(cluster: &Cluster) {
    let turn = cluster.post(1, "demo", "/emoji").await;
    let wanted = "Grüße, 世界! 🦀🎉 \u{1F469}\u{200D}\u{1F680} \u{2028}é\u{301}";
    assert_eq!(completed(&cluster.watch_all(&turn).await), wanted);
    let turn = cluster.post(0, "demo", wanted).await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), format!("Hello! You said: {wanted}"));
}

pub async fn a_guard_stops_a_turn_before_any_worker_sees_it(cluster: &Cluster) {
    let guards = json!([
        {"kind": "max_chars", "limit": 20, "notice": "Please be brief."},
        {"kind": "deny_regex", "pattern": "(?i)secret", "notice": "I keep no secrets."},
    ]);
    // A worker would fail to start: nothing may be started.
    cluster.demo_agent("guarded", json!({"guards": guards, "command": ["/nonexistent/agent"]})).await;
    let turn = cluster.post(0, "guarded", "tell me a Secret").await;
    let events = cluster.watch_all(&turn).await;
    let error = failed(&events, "guard_blocked", "I keep no secrets.");
    assert_eq!((&error["retryable"], &error["safe_to_retry"]), (&json!(false), &json!(true)));
    snapshot("guard_blocked", &events);
    let turn = cluster.post(1, "guarded", "a message that is much too long").await;
    failed(&cluster.watch_all(&turn).await, "guard_blocked", "Please be brief.");
}

pub async fn a_worker_receives_the_turn_as_it_was_posted(cluster: &Cluster) {
    let echo = r#"
printf '{"type":"custom","name":"turn","data":%s}\n' "$turn"
say '{"type":"complete"}'"#;
    cluster.put_agent("echo", shell(echo)).await;
    let input = json!({"text": "look", "attachments": [{"url": "https://example.org/a.png", "n": 1.50}, {"b": null}]});
    let turn = cluster.post_json(1, json!({"agent": "echo", "input": input})).await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(kinds(&events), ["accepted", "started", "custom", "completed"]);
    let received = &events[2].data["data"];
    assert_eq!(received["input"], input);
    assert_eq!(
        (&received["turn_id"], &received["conversation_id"]),
        (&json!(turn.id), &json!(turn.conversation))
    );
    assert_eq!((&received["type"], &received["attempt"]), (&json!("turn"), &json!(1)));
    assert!(received["deadline"].is_string() && received["traceparent"].is_string(), "{received}");
    assert!(received["history"].is_null(), "there is none yet: {received}");
}

pub async fn metadata_comes_back(cluster: &Cluster) {
    let metadata = json!({"ticket": 17, "tags": ["a", "b"], "deep": {"er": null}});
    let turn = json!({"agent": "demo", "input": "hello", "metadata": metadata});
    let turn = cluster.post_json(0, turn).await;
    assert_eq!(turn.json["metadata"], metadata);
    cluster.watch_all(&turn).await;
    for i in cluster.living() {
        assert_eq!(cluster.get(i, &format!("/v1/turns/{}", turn.id)).await["metadata"], metadata);
    }
}
