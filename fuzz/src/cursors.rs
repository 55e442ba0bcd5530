//! Cursors and the parameters around them: the first byte picks a route, the first line is the
//! query's text, the second the `Last-Event-ID`.
//!
//! Owns: a route takes exactly the parameters that it knows, each once and within its bounds; a
//! cursor is taken exactly where it reads as one; every refusal names its field; and what reads as an
//! id or a place reads back as the same.

use std::str::FromStr;

use axum::{
    body::Body,
    extract::Query,
    http::{HeaderValue, Request, StatusCode, Uri, header},
};
use lastword::{
    agent::is_agent_name,
    id::{ConversationId, ReplicaId, TurnId, WorkerId},
    stream::Position,
    turn::Status,
    units::{Size, Span},
};

use super::door::{Door, OPERATOR};

const DIGITS: &str = "019000000000700080000000000000ab";

/// Which text a parameter takes.
type Takes = fn(&str) -> bool;

/// A route and its parameters.
struct Route {
    path: String,
    takes: Vec<(&'static str, Takes)>,
    /// Whether it takes a `Last-Event-ID`, and which.
    resumes: Option<Takes>,
}

fn routes() -> Vec<Route> {
    let events = |path: String, cursor: Takes| {
        let takes: Vec<(&'static str, Takes)> = vec![
            ("after", cursor),
            ("wait", |text| within(text, 0..=60)),
            ("limit", |text| within(text, 1..=1000)),
        ];
        Route { path, takes, resumes: Some(cursor) }
    };
    let list = |path: &str, cursor: Takes, more: &[(&'static str, Takes)]| {
        let mut takes: Vec<(&'static str, Takes)> =
            vec![("cursor", cursor), ("limit", |text| within(text, 1..=200))];
        takes.extend(more);
        Route { path: path.to_owned(), takes, resumes: None }
    };
    let filters: [(&'static str, Takes); 4] = [
        ("agent", is_agent_name),
        ("status", reads::<Status>),
        ("conversation_id", reads::<ConversationId>),
        ("overdue", reads::<bool>),
    ];
    vec![
        events(format!("/v1/turns/turn_{DIGITS}/events"), |text| within(text, -1..=i64::from(i32::MAX))),
        events(format!("/v1/conversations/conv_{DIGITS}/events"), reads::<Position>),
        list("/v1/turns", reads::<TurnId>, &filters),
        list(&format!("/v1/conversations/conv_{DIGITS}/turns"), reads::<TurnId>, &[]),
        list("/v1/conversations", reads::<ConversationId>, &filters[..1]),
        list("/v1/agents", is_agent_name, &[]),
        list("/v1/workers", reads::<WorkerId>, &[]),
        list("/v1/replicas", reads::<ReplicaId>, &[]),
    ]
}

fn reads<T: FromStr>(text: &str) -> bool {
    text.parse::<T>().is_ok()
}

fn within(text: &str, bounds: std::ops::RangeInclusive<i64>) -> bool {
    text.parse().is_ok_and(|n| bounds.contains(&n))
}

/// Checks one input.
pub fn check(door: &Door, bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let mut lines = rest.split(|byte| *byte == b'\n');
    let (query, last) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Ok(text) = std::str::from_utf8(query) {
        check_texts(text);
    }
    let routes = routes();
    let route = &routes[usize::from(first) % routes.len()];
    let target = [route.path.as_bytes(), b"?", query].concat();
    let (Ok(target), Ok(last)) = (Uri::try_from(target), HeaderValue::from_bytes(last)) else { return };
    let wrong = wrong_field(route, &target, &last);
    let request = Request::builder().uri(target.clone());
    let request = request.header("last-event-id", last).header(header::ACCEPT, "application/json");
    let request = request.header(header::AUTHORIZATION, format!("Bearer {OPERATOR}"));
    let answer = door.knock(request.body(Body::empty()).unwrap());
    match wrong {
        Some(fields) => {
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{target}: {fields:?}");
            assert!(
                fields.iter().any(|field| field == answer.field("field")),
                "{target}: {fields:?} {answer:?}"
            );
        }
        None => assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{target}: {answer:?}"),
    }
}

/// Which fields are wrong by this reader's account; `None` where none is.
fn wrong_field(route: &Route, target: &Uri, last: &HeaderValue) -> Option<Vec<String>> {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(target) else {
        return Some(vec!["query".to_owned()]);
    };
    let mut wrong = Vec::new();
    for (at, (name, value)) in pairs.iter().enumerate() {
        let is_first = pairs.iter().position(|(other, _)| other == name) == Some(at);
        let takes = route.takes.iter().find(|(known, _)| known == name);
        if !is_first || !takes.is_some_and(|(_, takes)| takes(value)) {
            wrong.push(if name.is_empty() { "query".to_owned() } else { name.clone() });
        }
    }
    if let Some(takes) = route.resumes
        && !last.is_empty()
        && !last.to_str().is_ok_and(takes)
    {
        wrong.push("Last-Event-ID".to_owned());
    }
    (!wrong.is_empty()).then_some(wrong)
}

/// What reads as something reads back as the same.
fn check_texts(text: &str) {
    if let Ok(at) = text.parse::<Position>() {
        assert!(at.ordinal >= 1 && at.seq >= -1);
        assert_eq!(at.to_string().parse(), Ok(at));
    }
    let ids = [
        text.parse::<TurnId>().map(|id| id.to_string()),
        text.parse::<ConversationId>().map(|id| id.to_string()),
        text.parse::<WorkerId>().map(|id| id.to_string()),
        text.parse::<ReplicaId>().map(|id| id.to_string()),
    ];
    let known: Vec<&String> = ids.iter().flatten().collect();
    assert!(known.len() <= 1 && known.iter().all(|id| *id == text), "an id has one form and names one thing");
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse(), Ok(span), "{text}");
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size), "{text}");
    }
}
