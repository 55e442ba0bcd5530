//! Requests, parsed strictly: bodies, query parameters, ids, and the headers in use.
//!
//! Refuses unknown fields and names them, because a misspelt limit or flag would have no effect. A refused request
//! stores nothing.

use std::{str::FromStr, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use serde::de::DeserializeOwned;

pub use super::params::{NoParams, OfNewTurn, Params};
use super::{bodies::BodyRoom, gateway::Gateway, problem::Problem};
use crate::{
    event::{NESTING_MAX, is_too_deep},
    halves,
    id::NotAnId,
    stream::render,
    task::aside,
};

/// The longest wait that a client may ask for, in seconds.
pub const WAIT_MAX_S: u64 = 60;

/// The parameter for the cursor of clients that cannot send headers, as common polyfills of `EventSource` name it.
pub const LAST_EVENT_ID: &str = "lastEventId";

/// A JSON body without unknown fields.
#[derive(Debug)]
pub struct Strict<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for Strict<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        KeptBody::from_request(request, gateway).await.map(|KeptBody(value, ..)| Strict(value))
    }
}

/// A body whose content type is JSON, unparsed.
#[derive(Debug)]
pub struct JsonText(pub Bytes);

impl FromRequest<Gateway> for JsonText {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        json_text(request, gateway).await.map(|(bytes, _held)| JsonText(bytes))
    }
}

/// [`Strict`] with the body's room and size in bytes, for a value that is kept after the request was parsed.
#[derive(Debug)]
pub struct KeptBody<T>(pub T, pub BodyRoom, pub usize);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for KeptBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        let (bytes, held) = json_text(request, gateway).await?;
        let weight = bytes.len();
        aside(weight, move || parse(&bytes)).await.map(|value| KeptBody(value, held, weight))
    }
}

/// An optional JSON body; without one, the default.
#[derive(Debug)]
pub struct Maybe<T>(pub T);

impl<T: DeserializeOwned + Default + Send + 'static> FromRequest<Gateway> for Maybe<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let (bytes, _held) = whole_body(request, gateway).await?;
        if bytes.is_empty() {
            return Ok(Maybe(T::default()));
        }
        if !is_json {
            return Err(Problem::not_json());
        }
        aside(bytes.len(), move || parse(&bytes)).await.map(Maybe)
    }
}

/// An empty object as a body.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn json_text(request: Request, gateway: &Gateway) -> Result<(Bytes, BodyRoom), Problem> {
    let is_json = is_json(request.headers());
    let (bytes, held) = whole_body(request, gateway).await?;
    if is_json { Ok((bytes, held)) } else { Err(Problem::not_json()) }
}

async fn whole_body(request: Request, gateway: &Gateway) -> Result<(Bytes, BodyRoom), Problem> {
    gateway.doors.bodies.read(request, gateway.config.body_max.0).await
}

/// Parses JSON text. Refuses unknown fields, lone surrogates and deep nesting.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if is_too_deep(bytes) {
        return Err(Problem::malformed(format!("It is nested deeper than {NESTING_MAX} levels.")));
    }
    // serde_json does not check the strings of raw values, which are passed on unchanged.
    if halves::has_one_alone(bytes) {
        return Err(Problem::malformed("It has half of a character, a lone surrogate, in an escape."));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|why| {
        let path = why.path().to_string();
        refused(&path, why.inner())
    })?;
    json.end().map_err(|why| Problem::malformed(why.to_string()))?;
    Ok(value)
}

fn refused(path: &str, why: &serde_json::Error) -> Problem {
    let detail = why.to_string();
    if !why.is_data() {
        return Problem::malformed(detail);
    }
    // serde names an unknown or missing field only in its message.
    let path = if path == "." { "" } else { path };
    let named = ["unknown field `", "missing field `", "duplicate field `"].iter().find_map(|start| {
        let rest = detail.strip_prefix(start)?;
        rest.split_once('`').map(|(name, _)| name)
    });
    let named = named.filter(|name| !name.is_empty());
    let field = match named {
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        Some(name) => format!("{path}.{name}"),
        None if path.is_empty() => "body".to_owned(),
        None => path.to_owned(),
    };
    Problem::invalid(field, detail)
}

/// The id in the route's path.
#[derive(Debug, Clone, Copy)]
pub struct Id<T>(pub T);

impl<T: FromStr<Err = NotAnId>> FromRequestParts<Gateway> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let text = path_part(parts, gateway, "id").await?;
        text.parse().map(Id).map_err(|why: NotAnId| Problem::invalid("id", why.to_string()))
    }
}

/// The agent's name in the route's path.
#[derive(Debug, Clone)]
pub struct Name(pub String);

impl FromRequestParts<Gateway> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        agent_name("name", path_part(parts, gateway, "name").await?).map(Name)
    }
}

async fn path_part(parts: &mut Parts, gateway: &Gateway, wanted: &str) -> Result<String, Problem> {
    let params = RawPathParams::from_request_parts(parts, gateway)
        .await
        .map_err(|_| Problem::invalid(wanted, "It is not valid UTF-8."))?;
    let found = params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
    found.ok_or_else(|| Problem::internal(&format!("the route has no `{wanted}`")))
}

/// Validates an agent's name.
pub fn agent_name(field: &str, name: String) -> Result<String, Problem> {
    if crate::agent::is_agent_name(&name) {
        return Ok(name);
    }
    Err(Problem::invalid(
        field,
        "An agent's name has 1 to 64 of a-z 0-9 - _ . and begins with a letter or a digit.",
    ))
}

/// One page of a list.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// `?cursor=` of the next page; null at the end.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// A page of a query that asked for `limit` + 1 items. The extra item only shows that there is a next page, which
    /// begins after the last item of this one.
    pub fn of(mut items: Vec<T>, limit: i64, cursor: impl FnOnce(&T) -> String) -> Page<T> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next = if has_more { items.last().map(cursor) } else { None };
        Page { items, next }
    }
}

/// Whether the client wants an event stream: the first known media type in `Accept` decides. `None` if there is none.
pub fn wants_events(headers: &HeaderMap) -> Option<bool> {
    let named = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|value| value.split(',')).find_map(|media| {
        let essence = media.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(render::MEDIA_TYPE) {
            Some(true)
        } else if essence.eq_ignore_ascii_case("application/json") {
            Some(false)
        } else {
            None
        }
    })
}

/// The cursor of a resumed stream; `None` if the header is absent or empty.
pub fn last_event_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("last-event-id").filter(|last| !last.is_empty())
}

/// Whether the request resumes a stream, by header or by parameter.
pub fn is_resumed(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let named = query.split('&').filter_map(|pair| pair.split_once('='));
    last_event_id(request.headers()).is_some()
        || named.into_iter().any(|(name, value)| name == LAST_EVENT_ID && !value.is_empty())
}

/// The seconds of `Prefer: wait=N`, at most [`WAIT_MAX_S`].
pub fn preferred_wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let named = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    let mut preferences = named.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let wait = preferences.find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').to_owned())
    });
    let Some(wait) = wait else { return Ok(None) };
    let seconds: u64 =
        wait.parse().map_err(|_| Problem::invalid("Prefer", "`wait` takes a number of whole seconds."))?;
    Ok(Some(Duration::from_secs(seconds.min(WAIT_MAX_S))))
}

/// The client's idempotency key.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").into_iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let is_well_formed = (1..=255).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    match key.to_str() {
        Ok(key) if is_well_formed && keys.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid(
            "Idempotency-Key",
            "It takes one value of 1 to 255 visible ASCII characters.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn the_first_media_type_that_is_known_decides() {
        for (accept, wants) in [
            ("text/event-stream", Some(true)),
            ("application/json, text/event-stream", Some(false)),
            ("text/html, text/event-stream;q=0.9, */*", Some(true)),
            ("*/*", None),
        ] {
            assert_eq!(wants_events(&headers("accept", accept)), wants, "{accept}");
        }
    }

    #[test]
    fn a_wait_is_read_among_other_preferences_and_capped() {
        let wait =
            |text| preferred_wait(&headers("prefer", text)).map(|wait| wait.map(|wait| wait.as_secs()));
        assert_eq!(wait("respond-async, wait=10").unwrap(), Some(10));
        assert_eq!(wait("wait=\"100\"").unwrap(), Some(60));
        assert_eq!(wait("respond-async").unwrap(), None);
        assert!(wait("wait=soon").is_err());
    }

    #[test]
    fn a_page_says_whether_there_is_another() {
        let page = Page::of(vec![3, 2, 1], 2, ToString::to_string);
        assert_eq!((page.items, page.next.as_deref()), (vec![3, 2], Some("2")));
        assert_eq!(Page::of(vec![3, 2], 2, ToString::to_string).next, None);
    }
}
