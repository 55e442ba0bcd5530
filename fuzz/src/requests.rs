//! Whole requests, written as HTTP is: `METHOD TARGET`, headers, a blank line, the body.
//!
//! Owns: no request makes the gateway fail for a reason of its own; each refusal is a problem that
//! names what is wrong; nobody comes by an operator's route without a token; and what comes as far as
//! the database was well-formed by the account of a reader of its own.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use lastword::agent::{AgentSpec, is_agent_name};
use serde_json::Value;

use super::door::{BODY_MAX, Door, OPERATOR};

/// Fields of a new turn.
const TURN_FIELDS: [&str; 7] =
    ["agent", "input", "conversation_id", "metadata", "stream", "if_busy", "on_disconnect"];

/// Checks one input.
pub fn check(door: &Door, bytes: &[u8]) {
    let Some((request, body)) = read(bytes) else { return };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let headers = request.headers().clone();
    let token = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().to_vec());
    let answer = door.knock(request);
    let status = answer.status;
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let announced: u64 = announced.unwrap_or_default();
        assert!(body.len() as u64 > BODY_MAX || announced > BODY_MAX);
    }
    let reached = status == StatusCode::SERVICE_UNAVAILABLE;
    if is_operators(&method, &path) && reached {
        let token = token.unwrap_or_default();
        assert!(
            token.ends_with(OPERATOR.as_bytes())
                || String::from_utf8_lossy(&token).trim().ends_with(OPERATOR)
        );
    }
    if reached {
        check_reached(&method, &path, &body);
    }
}

fn read(bytes: &[u8]) -> Option<(Request<Body>, Vec<u8>)> {
    let (head, body) = match bytes.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (bytes, &b""[..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    let request = request.body(Body::from(body.to_vec())).ok()?;
    // What a server takes by its path alone.
    (request.uri().path().starts_with('/') && request.method() != Method::CONNECT)
        .then(|| (request, body.to_vec()))
}

fn is_operators(method: &Method, path: &str) -> bool {
    let is_change = method == Method::PUT || method == Method::DELETE;
    path.starts_with("/v1/replicas") || path.starts_with("/v1/workers") || is_change
}

/// A request that came as far as the database was one that makes sense.
fn check_reached(method: &Method, path: &str, body: &[u8]) {
    assert!(body.len() as u64 <= BODY_MAX || method == Method::GET || method == Method::DELETE);
    let object = || serde_json::from_slice::<Value>(body).unwrap();
    match (method.as_str(), path) {
        ("POST", "/v1/turns") => check_turn(&object()),
        ("POST", "/v1/conversations") => {
            let asked = object();
            assert_eq!(asked.as_object().map(serde_json::Map::len), Some(1));
            assert!(asked["agent"].as_str().is_some_and(is_agent_name));
        }
        ("PUT", path) if path.starts_with("/v1/agents/") => {
            let spec: AgentSpec = serde_json::from_slice(body).unwrap();
            assert_eq!(spec.validate(), Ok(()));
        }
        ("POST", path) if path.ends_with("/answers") => {
            let asked = object();
            assert_eq!(asked.as_object().map(serde_json::Map::len), Some(2));
            assert!(asked["ask_id"].is_string() && !asked["answer"].is_null());
        }
        ("POST", _) => assert!(body.is_empty() || object().is_object()),
        _ => {}
    }
}

fn check_turn(asked: &Value) {
    let fields = asked.as_object().unwrap();
    assert!(fields.keys().all(|name| TURN_FIELDS.contains(&name.as_str())), "{asked}");
    assert!(asked["agent"].as_str().is_some_and(is_agent_name), "{asked}");
    let text = asked["input"].as_str().or_else(|| asked["input"]["text"].as_str());
    assert!(text.is_some_and(|text| !text.trim().is_empty()), "{asked}");
    let one_of = |field: &str, words: &[&str]| {
        fields.get(field).is_none_or(|value| value.as_str().is_some_and(|value| words.contains(&value)))
    };
    assert!(one_of("if_busy", &["queue", "reject", "interrupt"]), "{asked}");
    assert!(one_of("on_disconnect", &["continue", "cancel"]), "{asked}");
    let is = |field: &str, kind: fn(&Value) -> bool| {
        fields.get(field).is_none_or(|value| value.is_null() || kind(value))
    };
    assert!(is("metadata", Value::is_object) && is("stream", Value::is_boolean), "{asked}");
    assert!(is("conversation_id", Value::is_string), "{asked}");
}
