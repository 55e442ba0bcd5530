//! The measuring client: posts turns, reads streams, and records when each part arrived.
//!
//! Owns the connections to the replicas. A turn that does not complete is an error, however fast.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, header};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::frames::{Frame, Frames};
use lastword::{clock::steady_ns, event::Kind};

/// A stream that brings nothing for so long is broken: keep-alives come every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a request without a stream may take.
const REQUEST_MAX: Duration = Duration::from_secs(60);

/// Whoever asks.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    token: Option<String>,
}

/// A turn to be run.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its agent.
    pub agent: String,
    /// What the user says.
    pub text: String,
    /// The conversation to go on with.
    pub conversation: Option<String>,
}

/// What was seen of one turn, moments on the steady clock.
#[derive(Debug, Clone, Default)]
pub struct TurnMoments {
    /// `turn_…`
    pub turn: String,
    /// `conv_…`
    pub conversation: String,
    /// `wrk_…`
    pub worker: String,
    /// When the request was sent.
    pub sent: u64,
    /// When the answer began: the turn is durable.
    pub answered: u64,
    /// When the worker's first piece came.
    pub first: Option<u64>,
    /// What that piece says of when it was said.
    pub stamp: Option<u64>,
    /// When the newest piece came.
    pub last: u64,
    /// When the last word came.
    pub ended: u64,
    /// How many pieces came.
    pub pieces: u64,
}

impl Client {
    /// A client of these replicas. One on this machine is never asked through a proxy.
    pub fn new(urls: &[String], token: Option<String>) -> anyhow::Result<Client> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(4096)
            .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")));
        if urls.iter().all(|url| is_local(url)) {
            http = http.no_proxy();
        }
        Ok(Client { http: http.build()?, token })
    }

    /// The bearer token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Runs a turn to its end and tells of every event as it comes, with its moment.
    pub async fn run(
        &self,
        url: &str,
        ask: &Ask,
        see: impl FnMut(&Frame<'_>, u64),
    ) -> anyhow::Result<TurnMoments> {
        let sent = steady_ns();
        let request = self.request(Method::POST, url, "/v1/turns").json(&ask.body());
        let response = answered(request.header(header::ACCEPT, "text/event-stream")).await?;
        watch(response, TurnMoments { sent, answered: steady_ns(), ..TurnMoments::default() }, see).await
    }

    /// Posts a turn, and does not wait for it.
    pub async fn post(&self, url: &str, ask: &Ask) -> anyhow::Result<String> {
        let request = self.request(Method::POST, url, "/v1/turns").json(&ask.body());
        let turn: Value = answered(request.timeout(REQUEST_MAX)).await?.json().await?;
        Ok(turn["id"].as_str().context("a turn without an id")?.to_owned())
    }

    /// Follows a turn from its first event to its last.
    pub async fn follow(
        &self,
        url: &str,
        turn: &str,
        see: impl FnMut(&Frame<'_>, u64),
    ) -> anyhow::Result<TurnMoments> {
        let sent = steady_ns();
        let request = self.request(Method::GET, url, &format!("/v1/turns/{turn}/events"));
        let response = answered(request.header(header::ACCEPT, "text/event-stream")).await?;
        watch(response, TurnMoments { sent, answered: steady_ns(), ..TurnMoments::default() }, see).await
    }

    /// Reads JSON.
    pub async fn get(&self, url: &str, path: &str) -> anyhow::Result<Value> {
        let request = self.request(Method::GET, url, path).timeout(REQUEST_MAX);
        Ok(answered(request).await?.json().await?)
    }

    /// Reads text.
    pub async fn text(&self, url: &str, path: &str) -> anyhow::Result<String> {
        let request = self.request(Method::GET, url, path).timeout(REQUEST_MAX);
        Ok(answered(request).await?.text().await?)
    }

    /// Puts JSON.
    pub async fn put(&self, url: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.request(Method::PUT, url, path).timeout(REQUEST_MAX).json(body);
        Ok(answered(request).await?.json().await?)
    }

    /// Whether a replica takes requests.
    pub async fn is_ready(&self, url: &str) -> bool {
        let asked = self.request(Method::GET, url, "/readyz").timeout(REQUEST_MAX).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    fn request(&self, method: Method, url: &str, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{url}{path}"));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

impl Ask {
    fn body(&self) -> Value {
        match &self.conversation {
            Some(conversation) => {
                json!({"agent": self.agent, "input": self.text, "conversation_id": conversation})
            }
            None => json!({"agent": self.agent, "input": self.text}),
        }
    }
}

async fn answered(request: RequestBuilder) -> anyhow::Result<Response> {
    let response = timeout(REQUEST_MAX, request.send()).await.context("no answer")??;
    let (url, status) = (response.url().clone(), response.status());
    if status.is_success() {
        return Ok(response);
    }
    bail!("{url} answered {status}: {}", response.text().await.unwrap_or_default().trim())
}

/// Reads a stream to its last word.
async fn watch(
    response: Response,
    mut seen: TurnMoments,
    mut see: impl FnMut(&Frame<'_>, u64),
) -> anyhow::Result<TurnMoments> {
    let (mut bytes, mut frames) = (response.bytes_stream(), Frames::default());
    let mut end = None;
    while let Some(chunk) = timeout(SILENCE_MAX, bytes.next()).await.context("the stream fell silent")? {
        let (chunk, now) = (chunk?, steady_ns());
        frames.feed(&chunk, |frame| {
            seen.note(&frame, now);
            if frame.kind.is_terminal() {
                end = Some((frame.kind, String::from_utf8_lossy(frame.data).into_owned()));
            }
            see(&frame, now);
        })?;
    }
    let (kind, word) = end.context("the stream ended before the last word")?;
    ensure!(kind == Kind::Completed, "a turn ended as {kind}: {word}");
    Ok(seen)
}

impl TurnMoments {
    fn note(&mut self, frame: &Frame<'_>, now: u64) {
        let text = |field| frame.text(field).unwrap_or_default().to_owned();
        match frame.kind {
            Kind::Accepted => {
                self.turn = text("turn_id");
                self.conversation = text("conversation_id");
            }
            Kind::Started => self.worker = text("worker_id"),
            kind if kind.is_terminal() => self.ended = now,
            _ => {
                if self.first.is_none() {
                    self.first = Some(now);
                    self.stamp = frame.stamp();
                }
                self.last = now;
                self.pieces += 1;
            }
        }
    }
}

/// Whether this URL names this machine.
pub fn is_local(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    matches!(host.as_deref(), Some("127.0.0.1" | "localhost" | "[::1]"))
}
