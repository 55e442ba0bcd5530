//! Refused requests name what is wrong, and store nothing.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::world::{World, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_body_is_refused_by_field_and_stores_nothing() {
    let world = World::start().await;
    let levels = lastword::event::NESTING_MAX;
    let deep = format!(
        r#"{{"agent":"demo","input":"x","metadata":{{"a":{}{}}}}}"#,
        "[".repeat(levels),
        "]".repeat(levels)
    );
    for (body, code, field) in [
        ("", "malformed_json", None),
        ("{", "malformed_json", None),
        (r#"{"agent":"demo","input":"x"} {}"#, "malformed_json", None),
        (r#"{"agent":"demo","input":"\ud800"}"#, "malformed_json", None),
        (&deep, "malformed_json", None),
        ("[]", "invalid_request", Some("body")),
        (r#"{"input":"x"}"#, "invalid_request", Some("agent")),
        (r#"{"agent":"demo"}"#, "invalid_request", Some("input")),
        (r#"{"agent":7,"input":"x"}"#, "invalid_request", Some("agent")),
        (r#"{"agent":"../x","input":"x"}"#, "invalid_request", Some("agent")),
        (r#"{"agent":"demo","input":7}"#, "invalid_request", Some("input")),
        (r#"{"agent":"demo","input":" "}"#, "invalid_request", Some("input")),
        (r#"{"agent":"demo","input":{"text":7}}"#, "invalid_request", Some("input.text")),
        (r#"{"agent":"demo","input":{"text":"x","colour":1}}"#, "invalid_request", Some("input.colour")),
        (r#"{"agent":"demo","input":{}}"#, "invalid_request", Some("input.text")),
        (r#"{"agent":"demo","input":"x","colour":1}"#, "invalid_request", Some("colour")),
        (r#"{"agent":"demo","input":"x","":1}"#, "invalid_request", Some("body")),
        (r#"{"agent":"demo","input":"x","if_busy":"maybe"}"#, "invalid_request", Some("if_busy")),
        (r#"{"agent":"demo","input":"x","stream":"yes"}"#, "invalid_request", Some("stream")),
        (r#"{"agent":"demo","input":"x","metadata":[]}"#, "invalid_request", Some("metadata")),
        (r#"{"agent":"demo","input":"x","conversation_id":"x"}"#, "invalid_request", Some("conversation_id")),
    ] {
        let asked = world.request(Method::POST, "/v1/turns").header("content-type", "application/json");
        let answer = asked.body(body.to_owned()).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{body}");
        let document = problem(answer).await;
        assert_eq!(document["code"], code, "{body}: {document}");
        assert_eq!(document["field"].as_str(), field, "{body}: {document}");
    }
    let list: Value = world.get("/v1/turns").await.json().await.unwrap();
    assert_eq!(list, json!({"items": [], "next": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_or_of_another_type_is_refused() {
    let world = World::with(|config| config.body_max = lastword::units::Size::kib(1)).await;
    let large = json!({"agent": "demo", "input": "x".repeat(2000)});
    let answer = world.post("/v1/turns", &large).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(problem(answer).await["limit_bytes"], 1024);

    // Without a length that could be refused up front.
    let chunks = futures_util::stream::iter((0..8).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 512])));
    let asked = world.request(Method::POST, "/v1/turns").header("content-type", "application/json");
    let answer = asked.body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);

    let asked = world.request(Method::POST, "/v1/turns").header("content-type", "text/plain");
    let answer = asked.body(r#"{"agent":"demo","input":"x"}"#).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(problem(answer).await["field"], "Content-Type");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_id_parameter_or_header_is_refused_by_name() {
    let world = World::start().await;
    let turn = world.make_turn(json!({})).await;
    let id = turn["id"].as_str().unwrap();
    for (path, field) in [
        ("/v1/turns/turn_1".to_owned(), "id"),
        (format!("/v1/turns/{}", id.replace("turn_", "conv_")), "id"),
        ("/v1/turns?limit=0".to_owned(), "limit"),
        ("/v1/turns?limit=201".to_owned(), "limit"),
        ("/v1/turns?limit=x".to_owned(), "limit"),
        ("/v1/turns?limit=1&limit=2".to_owned(), "limit"),
        ("/v1/turns?status=done".to_owned(), "status"),
        ("/v1/turns?cursor=x".to_owned(), "cursor"),
        ("/v1/turns?agent=%00".to_owned(), "agent"),
        ("/v1/turns?overdue=1".to_owned(), "overdue"),
        ("/v1/turns?colour=red".to_owned(), "colour"),
        ("/v1/turns?=red".to_owned(), "query"),
        ("/v1/conversations?cursor=turn_1".to_owned(), "cursor"),
        ("/v1/agents/UPPER".to_owned(), "name"),
        (format!("/v1/turns/{id}/events?after=x"), "after"),
        (format!("/v1/turns/{id}/events?after=-2"), "after"),
        (format!("/v1/turns/{id}/events?wait=61"), "wait"),
        (format!("/v1/turns/{id}/events?limit=0"), "limit"),
    ] {
        let answer = world.get(&path).await;
        assert_eq!(answer.status(), 400, "{path}");
        assert_eq!(problem(answer).await["field"], field, "{path}");
    }
    let body = json!({"agent": "demo", "input": "x"});
    let conversation = turn["conversation_id"].as_str().unwrap();
    for (method, path, field) in [
        (Method::POST, "/v1/turns?wait=5".to_owned(), "wait"),
        (Method::POST, "/v1/turns?colour=red".to_owned(), "colour"),
        (Method::POST, format!("/v1/turns/{id}/retry?wait=5"), "wait"),
        (Method::POST, format!("/v1/turns/{id}/cancel?wait=5"), "wait"),
        (Method::POST, format!("/v1/turns/{id}/answers?wait=5"), "wait"),
        (Method::POST, "/v1/conversations?colour=red".to_owned(), "colour"),
        (Method::GET, format!("/v1/turns/{id}?colour=red"), "colour"),
        (Method::GET, format!("/v1/conversations/{conversation}?colour=red"), "colour"),
        (Method::GET, "/v1/agents/demo?colour=red".to_owned(), "colour"),
        (Method::PUT, "/v1/agents/demo?force=1".to_owned(), "force"),
        (Method::DELETE, "/v1/agents/demo?force=1".to_owned(), "force"),
        (Method::DELETE, format!("/v1/conversations/{conversation}?force=1"), "force"),
        (Method::POST, "/v1/worker-tokens?agent=demo".to_owned(), "agent"),
    ] {
        let answer = world.as_operator(method.clone(), &path).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{method} {path}");
        let refused = problem(answer).await;
        assert_eq!(refused["field"], field, "{method} {path}");
        let is_new_turn = path.starts_with("/v1/turns?wait") || path.contains("/retry");
        assert_eq!(refused["detail"].as_str().unwrap().contains("Prefer: wait="), is_new_turn, "{refused}");
    }
    for (name, value) in [("idempotency-key", ""), ("idempotency-key", "a b"), ("prefer", "wait=soon")] {
        let asked = world.request(Method::POST, "/v1/turns").header(name, value);
        let answer = asked.json(&json!({"agent": "demo", "input": "x"})).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{name}: {value}");
        assert_eq!(problem(answer).await["field"].as_str().unwrap().to_lowercase(), name);
    }
    let too_long = world.request(Method::POST, "/v1/turns").header("idempotency-key", "k".repeat(256));
    let answer = too_long.json(&json!({"agent": "demo", "input": "x"})).send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_problem_document_too() {
    let world = World::start().await;
    let nobody = "0".repeat(32);
    for (method, path, status, code) in [
        (Method::GET, "/nowhere".to_owned(), 404, "not_found"),
        (Method::PUT, "/v1/turns".to_owned(), 405, "method_not_allowed"),
        (Method::GET, format!("/v1/turns/turn_{nobody}"), 404, "turn_not_found"),
        (Method::GET, format!("/v1/turns/turn_{nobody}/events"), 404, "turn_not_found"),
        (Method::POST, format!("/v1/turns/turn_{nobody}/cancel"), 404, "turn_not_found"),
        (Method::POST, format!("/v1/turns/turn_{nobody}/retry"), 404, "turn_not_found"),
        (Method::GET, format!("/v1/conversations/conv_{nobody}"), 404, "conversation_not_found"),
        (Method::GET, format!("/v1/conversations/conv_{nobody}/turns"), 404, "conversation_not_found"),
        (Method::GET, format!("/v1/conversations/conv_{nobody}/events"), 404, "conversation_not_found"),
        (Method::GET, "/v1/agents/nobody".to_owned(), 404, "agent_not_found"),
    ] {
        let answer = world.request(method.clone(), &path).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(problem(answer).await["code"], code, "{method} {path}");
    }
    let answer = world.post("/v1/turns", &json!({"agent": "nobody", "input": "x"})).await;
    assert_eq!(problem(answer).await["code"], "agent_not_found");
    let conversation = format!("conv_{nobody}");
    let body = json!({"agent": "demo", "input": "x", "conversation_id": conversation});
    let answer = world.post("/v1/turns", &body).await;
    assert_eq!(problem(answer).await["code"], "conversation_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_text_is_stored_and_comes_back_whole() {
    let world = World::start().await;
    let metadata = json!({"nul": "a\u{0}b", "line": "a\r\nb", "deep": {"n": [1, null, true]}});
    let fields =
        json!({"input": {"text": "a\u{0}\u{2028}b", "attachments": [{"x": 1}]}, "metadata": metadata});
    let turn = world.make_turn(fields).await;
    assert_eq!(turn["metadata"], metadata);
    let id = turn["id"].as_str().unwrap().parse().unwrap();
    let (_, _, stored, _) = world.store.input(id).await.unwrap().unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored, json!({"text": "a\u{0}\u{2028}b", "attachments": [{"x": 1}]}));
}
