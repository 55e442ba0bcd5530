//! Messages of workers and clients arrive completely and unchanged.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    support::{Cluster, OPERATOR, PATIENCE, eventually, kinds, said},
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

/// What a worker says that cuts its text by UTF-16 index.
const HALVES: &str = r#"
say '{"type":"delta","text":"All good \ud83c"}'
say '{"type":"status","state":"thinking"}'
say '{"type":"delta","text":"\udf89 done \uD83D"}'
say '{"type":"delta","text":""}'
say '{"type":"delta","text":"\uDE00\ud83d"}'
say '{"type":"delta","text":"\ude01"}'
say '{"type":"complete"}'"#;

pub async fn a_character_cut_in_halves_arrives_whole(cluster: &Cluster) {
    cluster.put_agent("halves", shell(HALVES)).await;
    let turn = cluster.post(0, "halves", "x").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), "All good 🎉 done 😀😁");
    assert_eq!(events.last().unwrap().text(), "All good 🎉 done 😀😁");
    let pieces: Vec<&str> =
        events.iter().filter(|event| event.kind == "delta").map(|event| event.text()).collect();
    assert_eq!(pieces, ["All good ", "🎉 done ", "", "😀", "😁"], "each delta is an event");
}

pub async fn a_half_that_stays_alone_is_replaced_and_its_turn_goes_on(cluster: &Cluster) {
    // Each with what is said in the end, by the deltas and by the whole answer.
    for (n, (said, wanted)) in [
        (r#"{"type":"delta","text":"a\ud83c"}"#, "a\u{fffd}"),
        (r#"{"type":"delta","text":"\udf89b"}"#, "\u{fffd}b"),
        (r#"{"type":"delta","text":"a\ud83cb \\ud83c"}"#, "a\u{fffd}b \\ud83c"),
        (
            "{\"type\":\"delta\",\"text\":\"a\\ud83c\"}'\nsay '{\"type\":\"delta\",\"text\":\"b\"}",
            "a\u{fffd}b",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let agent = format!("alone-{n}");
        cluster.put_agent(&agent, shell(&format!("say '{said}'\nsay '{{\"type\":\"complete\"}}'"))).await;
        let events = cluster.watch_all(&cluster.post(1, &agent, "x").await).await;
        assert_eq!(completed(&events), wanted, "{said}");
        assert_eq!(events.last().unwrap().text(), wanted, "{said}");
    }
    // Wherever else a half may stand.
    let elsewhere = r#"
say '{"type":"custom","name":"\ud83c","data":{"\udf89":["\ud83c","\ud83c\udf89"]}}'
say '{"type":"ephemeral","text":"\ud83c"}'
say '{"type":"status","state":"\ud83c"}'
say '{"type":"content","text":"\udf89\ud83c"}'
say '{"type":"delta","text":"a\ud83c"}'
say '{"type":"error","message":"It stopped \ud83c."}'"#;
    cluster.put_agent("elsewhere", shell(elsewhere)).await;
    let events = cluster.watch_all(&cluster.post(0, "elsewhere", "x").await).await;
    failed(&events, "agent_error", "It stopped \u{fffd}.");
    let content = events.iter().find(|event| event.kind == "content").unwrap();
    assert_eq!(content.text(), "\u{fffd}\u{fffd}");
    let custom = events.iter().find(|event| event.kind == "custom").unwrap();
    assert_eq!(custom.data["data"], json!({"\u{fffd}": ["\u{fffd}", "🎉"]}));
    assert_eq!(said(&events), "a\u{fffd}", "what waited for its other half is said before the end");
}

pub async fn what_platforms_put_around_lines_does_no_harm(cluster: &Cluster) {
    let script = "import sys, json
out = sys.stdout.buffer
out.write(b'\\xef\\xbb\\xbf{\"type\":\"ready\"}\\r\\n'); out.flush()
sys.stdin.readline()
for line in [b'', b'\\xef\\xbb\\xbf', b'\\xef\\xbb\\xbf{\"type\":\"delta\",\"text\":\"a\"}', b'  ', b'\\t{\"type\":\"complete\"}']:
    out.write(line + b'\\r\\n')
out.flush()
sys.stdin.readline()";
    let spec = json!({"runtime": "process", "command": ["python3", "-c", script]});
    cluster.put_agent("around", spec).await;
    let events = cluster.watch_all(&cluster.post(0, "around", "x").await).await;
    assert_eq!(completed(&events), "a");
    assert_eq!(kinds(&events), ["accepted", "started", "delta", "completed"]);
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

pub async fn an_input_that_no_worker_can_be_handed_is_refused(cluster: &Cluster) {
    // As JSON on one line; what readers take for a line's end stands there escaped, and takes twice the room.
    const INPUT_MAX: usize = 1024 * 1024 - 16 * 1024;
    let count = "
import sys, json
print(json.dumps({'type': 'ready'}), flush=True)
for line in sys.stdin:
    turn = json.loads(line)
    if turn['type'] != 'turn': break
    print(json.dumps({'type': 'delta', 'text': str(len(turn['input']['text']))}), flush=True)
    print(json.dumps({'type': 'complete'}), flush=True)
";
    let spec = json!({"runtime": "process", "command": ["python3", "-c", count]});
    cluster.put_agent("counting", spec).await;
    let longest = INPUT_MAX - r#"{"text":""}"#.len();
    let turn = cluster.post(0, "counting", &"x".repeat(longest)).await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), longest.to_string());
    for input in [
        json!("x".repeat(longest + 1)),
        json!("a\u{2028}".repeat(200_000)),
        json!({"text": "look", "attachments": ["x".repeat(longest)]}),
    ] {
        let asked = json!({"agent": "counting", "input": input});
        let (status, problem) = cluster.ask(1, Method::POST, "/v1/turns", Some(asked)).await;
        assert_eq!((status, &problem["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("input_too_large")));
        assert_eq!((&problem["field"], &problem["limit_bytes"]), (&json!("input"), &json!(INPUT_MAX)));
    }
}

pub async fn an_answer_that_no_worker_can_be_handed_is_refused(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/ask How long?").await;
    let ask = cluster.until(1, &turn, "ask", PATIENCE).await;
    let ask_id = ask.data["ask_id"].as_str().unwrap();
    let (status, problem) =
        cluster.answer(1, &turn, ask_id, json!("x".repeat(1024 * 1024 - 16 * 1024))).await;
    assert_eq!((status, &problem["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("input_too_large")));
    assert_eq!(cluster.answer(1, &turn, ask_id, json!("short")).await.0, StatusCode::ACCEPTED);
    completed(&cluster.watch_all(&turn).await);
}

pub async fn an_input_that_proves_too_long_later_is_not_worth_a_retry(cluster: &Cluster) {
    // As if an older release had taken it.
    let first = cluster.post(0, "demo", "/ask Who?").await;
    let ask = cluster.until(0, &first, "ask", PATIENCE).await;
    let second = cluster.post_in(1, &first.conversation, "demo", "x").await;
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let grown = r#"update turns set input = '{"text":"' || repeat('x', 1100000) || '"}' where id = $1"#;
    let id: uuid::Uuid = second.id.strip_prefix("turn_").unwrap().parse().unwrap();
    assert_eq!(sqlx::query(grown).bind(id).execute(&mut conn).await.unwrap().rows_affected(), 1);
    let ask_id = ask.data["ask_id"].as_str().unwrap();
    assert_eq!(cluster.answer(0, &first, ask_id, json!("me")).await.0, StatusCode::ACCEPTED);
    let events = cluster.watch_all(&second).await;
    assert_eq!(failed(&events, "input_too_long", "Your message is too long")["retryable"], json!(false));
}

/// A value that no reader of JSON into numbers and maps gives back as it came.
const EXACT: &str = r#"{"z":[1.0,1e400,-0.0,123456789012345678901234567890],"a":{"c":1E5,"b":"\u00e9"}}"#;

pub async fn what_is_kept_whole_keeps_its_numbers_and_its_order(cluster: &Cluster) {
    let script = format!(
        r#"
say '{{"type":"custom","name":"exact","data":{EXACT}}}'
say '{{"type":"tool_result","z":1.0,"result":{EXACT},"a":2}}'
say '{{"type":"ask","ask_id":"q","prompt":"?","options":{EXACT}}}'
read -r answer
printf '{{"type":"custom","name":"heard","data":[%s,%s]}}\n' "$turn" "$answer"
say '{{"type":"complete","text":"ok","usage":{EXACT}}}'"#
    );
    cluster.put_agent("exact", shell(&script)).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |method: Method, path: &str, body: Option<String>| {
        let asked = http.request(method, format!("{}{path}", cluster.url(0))).bearer_auth(OPERATOR);
        let asked = match body {
            Some(body) => asked.header("content-type", "application/json").body(body),
            None => asked.header("accept", "application/json"),
        };
        let answer = asked.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{status}: {text}");
        text
    };
    let mut conversation = String::new();
    for is_second in [false, true] {
        let body = format!(
            r#"{{"agent":"exact","input":{{"text":"x","attachments":[{EXACT}]}},"metadata":{EXACT}{conversation}}}"#
        );
        let made = ask(Method::POST, "/v1/turns", Some(body)).await;
        assert!(made.contains(&format!(r#""metadata":{EXACT}"#)), "{made}");
        let id = |prefix: &str| made[made.find(prefix).unwrap()..][..prefix.len() + 32].to_owned();
        let (turn, events) = (id("turn_"), format!("/v1/turns/{}/events", id("turn_")));
        conversation = format!(r#","conversation_id":"{}""#, id("conv_"));
        eventually("it asks", async || {
            ask(Method::GET, &events, None).await.contains("\"ask_id\"").then_some(())
        })
        .await;
        let answer = format!(r#"{{"ask_id":"q","answer":{EXACT}}}"#);
        ask(Method::POST, &format!("/v1/turns/{turn}/answers"), Some(answer)).await;
        let ended = eventually("it ends", async || {
            let seen = ask(Method::GET, &format!("/v1/turns/{turn}"), None).await;
            seen.contains("\"completed\"").then_some(seen)
        });
        let ended = ended.await;
        assert!(ended.contains(&format!(r#""metadata":{EXACT}"#)), "{ended}");
        assert!(ended.contains(&format!(r#""usage":{EXACT}"#)), "{ended}");
        let log = ask(Method::GET, &events, None).await;
        let stream = http.get(format!("{}{events}", cluster.url(1))).bearer_auth(OPERATOR);
        let stream = stream.header("accept", "text/event-stream").send().await.unwrap().text().await.unwrap();
        for told in [&log, &stream] {
            for field in ["data", "result", "options", "answer", "usage"] {
                assert!(told.contains(&format!(r#""{field}":{EXACT}"#)), "{field}: {told}");
            }
            assert!(told.contains(&format!(r#""z":1.0,"result":{EXACT},"a":2"#)), "whole: {told}");
            assert!(told.contains(&format!(r#""input":{{"text":"x","attachments":[{EXACT}]}}"#)), "{told}");
            let is_told = told.contains(&format!(r#""attachments":[{EXACT}],"asks":["#));
            assert_eq!(is_told, is_second, "a fresh worker is told it as it came: {told}");
        }
    }
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
