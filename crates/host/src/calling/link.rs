//! The link to the gateway: which replica is called, and single calls to it.
//!
//! Owns the route. All of this host calls one replica, and changes it together, since each change makes the
//! gateway move every turn. If a configured URL is a load balancer's, the replica's own address is used where it
//! is reachable.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use reqwest::{Client, Response, Url, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{error::CallingError, words::RegisteredHost};
use lastword_client::gateway::{ProblemAnswer, cause, problem};
use lastword_words::id::{ConversationId, WorkerId};

/// Timeout of one connection; then another URL is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the check whether a replica's own address answers.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Addresses remembered as misleading. Each new replica may have another one.
const MISLEADING_MAX: usize = 64;

/// How this host identifies itself to the gateway.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Whose turns it runs.
    pub agent: String,
    /// The only conversation that it serves, where there is one.
    pub conversation: Option<ConversationId>,
    /// The worker id given by whoever started this host, if any.
    pub worker: Option<WorkerId>,
    /// What operators see of it.
    pub name: Option<String>,
    /// The worker token.
    pub token: String,
}

/// The replica that is called.
#[derive(Debug, Clone)]
pub struct Route {
    pub base: String,
    pub registered: Arc<RegisteredHost>,
    /// Index of the configured URL it was found by.
    pub found_by: usize,
}

/// Why a replica does not accept this host.
#[derive(Debug)]
pub enum NoRoute {
    /// Final: no other replica will accept this host.
    Refused(ProblemAnswer),
    /// Another replica may accept it, or this one later.
    Unreachable(String),
}

/// The connection to the gateway.
#[derive(Debug)]
pub struct GatewayLink {
    http: Client,
    /// For registrations, with new connections: a load balancer keeps an old connection on its replica.
    fresh: Client,
    urls: Vec<String>,
    identity: Identity,
    worker: Mutex<Option<WorkerId>>,
    /// Replicas' own addresses that lead elsewhere from here; the newest.
    misleading: Mutex<VecDeque<String>>,
    route: watch::Sender<Option<Route>>,
}

impl GatewayLink {
    /// A link to a gateway at these URLs, without a route yet.
    pub fn new(urls: &[String], identity: Identity) -> Result<GatewayLink, CallingError> {
        let mut bases = Vec::with_capacity(urls.len());
        for text in urls {
            let refused = |why: String| CallingError::Url { url: text.clone(), why };
            let url = Url::parse(text.trim()).map_err(|why| refused(why.to_string()))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(refused("needs http:// or https://".to_owned()));
            }
            bases.push(url.as_str().trim_end_matches('/').to_owned());
        }
        if bases.is_empty() {
            return Err(CallingError::NoUrl);
        }
        let client = || {
            let agent = concat!("lastword-work/", env!("CARGO_PKG_VERSION"));
            let client =
                Client::builder().connect_timeout(CONNECT_TIMEOUT).user_agent(agent).tcp_nodelay(true);
            // A proxy cannot reach this machine's own ports.
            if bases.iter().all(|base| is_loopback(base)) { client.no_proxy() } else { client }
        };
        Ok(GatewayLink {
            http: client().build()?,
            fresh: client().pool_max_idle_per_host(0).build()?,
            urls: bases,
            worker: Mutex::new(identity.worker),
            identity,
            misleading: Mutex::default(),
            route: watch::Sender::new(None),
        })
    }

    /// The number of URLs.
    pub fn urls(&self) -> usize {
        self.urls.len()
    }

    /// The present route and its changes.
    pub fn routes(&self) -> watch::Receiver<Option<Route>> {
        self.route.subscribe()
    }

    /// Sets or clears the route.
    pub fn set_route(&self, route: Option<Route>) {
        self.route.send_replace(route);
    }

    /// Like `note_misleading`, unless the address is a configured one.
    pub fn note_misleading_unless_given(&self, base: &str) {
        if self.urls.iter().all(|url| url != base) {
            self.note_misleading(base);
        }
    }

    /// Remembers that a replica's own address leads elsewhere.
    fn note_misleading(&self, base: &str) {
        let mut misleading = self.misleading.lock();
        if misleading.iter().any(|known| known == base) {
            return;
        }
        if misleading.len() >= MISLEADING_MAX {
            misleading.pop_front();
        }
        misleading.push_back(base.to_owned());
    }

    /// Registers at the `n`-th URL, modulo their number.
    pub async fn register(&self, n: usize) -> Result<Route, NoRoute> {
        let found_by = n % self.urls.len();
        let base = &self.urls[found_by];
        let worker = *self.worker.lock();
        let Identity { agent, conversation, name, token, worker: _ } = &self.identity;
        let body = json!({
            "agent": agent, "conversation_id": conversation, "worker_id": worker, "name": name,
        });
        let asked = self.fresh.post(format!("{base}/v1/worker/register")).bearer_auth(token).json(&body);
        let unreachable = |why: String| NoRoute::Unreachable(format!("{base}: {why}"));
        let answer = asked.timeout(REGISTER_TIMEOUT).send().await.map_err(|why| unreachable(cause(&why)))?;
        if !answer.status().is_success() {
            let problem = problem(answer).await;
            let is_final = matches!(problem.status, 400 | 401 | 403 | 404 | 409);
            return Err(if is_final { NoRoute::Refused(problem) } else { unreachable(problem.to_string()) });
        }
        let registered: RegisteredHost = answer.json().await.map_err(|why| unreachable(cause(&why)))?;
        *self.worker.lock() = Some(registered.worker_id);
        let base = self.own_address(base, &registered.url).await.unwrap_or_else(|| base.clone());
        Ok(Route { base, registered: Arc::new(registered), found_by })
    }

    /// The replica's own address, if it differs and answers.
    async fn own_address(&self, base: &str, own: &str) -> Option<String> {
        let own = own.trim_end_matches('/');
        let is_known = self.misleading.lock().iter().any(|known| known == own);
        // The replica's loopback address means another machine here.
        if own.is_empty() || own == base || is_known || (is_loopback(own) && !is_loopback(base)) {
            return None;
        }
        let asked = self.http.get(format!("{own}/livez")).timeout(PROBE_TIMEOUT).send().await;
        match asked {
            Ok(answer) if answer.status().is_success() => Some(own.to_owned()),
            _ => {
                self.note_misleading(own);
                None
            }
        }
    }

    /// A call authorised as this host.
    pub async fn call(
        &self,
        route: &Route,
        path: &str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Response, reqwest::Error> {
        let asked = self.http.post(format!("{}/v1/worker/{path}", route.base));
        asked.bearer_auth(&self.identity.token).json(body).timeout(timeout).send().await
    }

    /// A call authorised for one turn.
    pub async fn post(
        &self,
        route: &Route,
        path: &str,
        token: &str,
        batch: Vec<u8>,
        timeout: Duration,
    ) -> Result<Response, reqwest::Error> {
        let asked = self.http.post(format!("{}/v1/worker/{path}", route.base));
        let asked = asked.bearer_auth(token).header(header::CONTENT_TYPE, "application/x-ndjson");
        asked.body(batch).timeout(timeout).send().await
    }
}

fn is_loopback(base: &str) -> bool {
    let host = Url::parse(base).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_http_url_is_refused() {
        let identity = Identity {
            agent: "a".to_owned(),
            conversation: None,
            worker: None,
            name: None,
            token: String::new(),
        };
        for urls in [vec!["localhost:1".to_owned()], vec!["ftp://x".to_owned()], Vec::new()] {
            assert!(GatewayLink::new(&urls, identity.clone()).is_err(), "{urls:?}");
        }
        let link = GatewayLink::new(&["http://[::1]:1/".to_owned()], identity).unwrap();
        assert_eq!(link.urls, ["http://[::1]:1"]);
        assert!(
            is_loopback("http://[::1]:1") && is_loopback("http://localhost") && !is_loopback("http://a.b")
        );
    }
}
