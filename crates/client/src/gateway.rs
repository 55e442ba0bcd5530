//! The gateway as a client sees it: the base URLs of equal replicas, and one token.
//!
//! Owns single requests and their errors. `follow` follows a turn.

use std::{fmt, time::Duration};

use reqwest::{
    Method, RequestBuilder, Response, Url,
    header::{self, HeaderMap},
};
use serde::Deserialize;
use serde_json::Value;

/// Timeout of one whole request; a frozen replica is then left for the next.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of one connection; then the next replica is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams send a comment every 15 s; a connection silent for longer than two intervals is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(35);

/// Equal replicas of one gateway.
pub struct GatewayClient {
    http: reqwest::Client,
    urls: Vec<String>,
    token: Option<String>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The gateway refused the request.
    #[error("{0}")]
    Refused(ProblemAnswer),
    /// No replica answered.
    #[error("cannot reach the gateway at {urls}: {why}")]
    Unreachable {
        /// The URLs that were tried.
        urls: String,
        /// The error of the last one.
        why: String,
    },
    /// The address is invalid.
    #[error("{0}")]
    Setup(String),
}

/// An error of the gateway (RFC 9457), as far as a person needs it.
#[derive(Debug, Clone, Deserialize)]
pub struct ProblemAnswer {
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// The stable code, for programs.
    #[serde(default)]
    pub code: String,
    /// For people.
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    title: String,
    /// The active turn of a busy conversation.
    #[serde(default)]
    active_turn_id: Option<String>,
    /// The `Retry-After` header.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl fmt::Display for ProblemAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.detail.is_empty() { &self.title } else { &self.detail };
        match said.is_empty() {
            true => write!(f, "the gateway answered with HTTP status {}", self.status)?,
            false => f.write_str(said)?,
        }
        if let Some(turn) = &self.active_turn_id {
            write!(f, " [turn {turn}]")?;
        }
        if self.code.is_empty() { Ok(()) } else { write!(f, " ({})", self.code) }
    }
}

impl ProblemAnswer {
    /// Whether the same request may succeed later or on another replica.
    pub fn is_transient(&self) -> bool {
        matches!(self.status, 408 | 429) || self.status >= 500
    }

    /// Whether the gateway's own cursor became invalid because its database lost events.
    pub fn is_rewound(&self) -> bool {
        matches!(self.code.as_str(), "log_rewound" | "cursor_past_head")
    }

    async fn of(response: Response) -> Self {
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let body = response.bytes().await.unwrap_or_default();
        let mut problem: ProblemAnswer =
            serde_json::from_slice(&body).unwrap_or_else(|_| ProblemAnswer::bare());
        problem.status = status;
        problem.retry_after = retry_after;
        problem
    }

    /// The refusal hidden in a stream that only says when to come back: reconnecting clients are refused that way.
    pub fn put_off(headers: &HeaderMap) -> Option<Self> {
        let retry_after = Some(retry_after(headers)?);
        let detail = "the replica cannot serve this stream just now".to_owned();
        Some(ProblemAnswer { status: 503, detail, retry_after, ..ProblemAnswer::bare() })
    }

    fn bare() -> Self {
        let (code, detail, title) = (String::new(), String::new(), String::new());
        ProblemAnswer { status: 0, code, detail, title, active_turn_id: None, retry_after: None }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_secs)
}

impl GatewayClient {
    /// A gateway at these base URLs; refuses URLs that are not HTTP.
    pub fn new(urls: &[String], token: Option<String>) -> Result<Self, CallError> {
        let mut bases = Vec::with_capacity(urls.len());
        let mut all_local = true;
        for text in urls {
            let url = Url::parse(text.trim()).map_err(|why| CallError::Setup(format!("`{text}`: {why}")))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(CallError::Setup(format!("`{text}`: needs to begin with http:// or https://")));
            }
            all_local &= matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
            bases.push(url.as_str().trim_end_matches('/').to_owned());
        }
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")));
        if all_local {
            // A proxy cannot reach this machine's own ports.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|why| CallError::Setup(cause(&why)))?;
        Ok(GatewayClient { http, urls: bases, token })
    }

    /// The base URLs, without a trailing slash.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The bearer token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request to the `n`-th replica, modulo their number.
    pub fn request(&self, n: usize, method: Method, path: &str) -> RequestBuilder {
        let base = self.urls.get(n % self.urls.len().max(1)).map_or("", String::as_str);
        let request = self.http.request(method, format!("{base}{path}"));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Reads one resource.
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(Method::GET, path, None).await
    }

    /// One request with a JSON answer, from the first replica that answers. Every route called this way is
    /// idempotent, so a lost answer is requested again elsewhere.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CallError> {
        let mut why = CallError::Setup("no URL to call".to_owned());
        for n in 0..self.urls.len() {
            let mut request = self.request(n, method.clone(), path).timeout(CALL_TIMEOUT);
            if let Some(body) = body {
                request = request.json(body);
            }
            match request.send().await {
                Ok(response) if response.status().is_success() => match response.bytes().await {
                    Ok(body) => {
                        let text = std::str::from_utf8(&body).unwrap_or_default();
                        return Ok(lastword_words::json::read(text).unwrap_or(Value::Null));
                    }
                    Err(broken) => why = self.unreachable(&cause(&broken)),
                },
                Ok(response) => {
                    let problem = ProblemAnswer::of(response).await;
                    let is_final = !problem.is_transient();
                    why = CallError::Refused(problem);
                    if is_final {
                        return Err(why);
                    }
                }
                Err(broken) => why = self.unreachable(&cause(&broken)),
            }
        }
        Err(why)
    }

    /// The error if no replica answers.
    pub fn unreachable(&self, why: &str) -> CallError {
        CallError::Unreachable { urls: self.urls.join(", "), why: why.to_owned() }
    }
}

/// The error in an unsuccessful response.
pub async fn problem(response: Response) -> ProblemAnswer {
    ProblemAnswer::of(response).await
}

/// Percent-encodes `text` as a path segment or query value.
pub fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The innermost cause of an error: "connection refused" says more than "error sending request".
pub fn cause(why: &dyn std::error::Error) -> String {
    let mut innermost = why;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_its_detail_and_its_code() {
        let text = r#"{"type":"about:blank","title":"Conflict","status":409,"code":"turn_active",
            "detail":"A turn is under way.","active_turn_id":"turn_1","stream_url":"/x"}"#;
        let problem: ProblemAnswer = serde_json::from_str(text).unwrap();
        assert_eq!(problem.to_string(), "A turn is under way. [turn turn_1] (turn_active)");
        assert!(!problem.is_transient());
        let bare = ProblemAnswer { status: 502, ..ProblemAnswer::bare() };
        assert_eq!(bare.to_string(), "the gateway answered with HTTP status 502");
        assert!(bare.is_transient());
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_path() {
        assert_eq!(segment("../agents?x=ü"), "..%2Fagents%3Fx%3D%C3%BC");
        assert_eq!(segment("turn_01"), "turn_01");
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for text in ["localhost:8080", "ftp://x", ""] {
            assert!(
                matches!(GatewayClient::new(&[text.to_owned()], None), Err(CallError::Setup(_))),
                "{text}"
            );
        }
    }
}
