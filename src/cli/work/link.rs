//! The link to the gateway: which replica is called, and single calls to it.
//!
//! Owns the route. One replica is called by all of this host, and left by all of it: each change costs the
//! gateway a move of every turn. Who calls a balancer is sent on to the replica itself, where that can be
//! reached.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, Response, Url, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::words::RegisteredHost;
use crate::{
    cli::client::gateway::{ProblemAnswer, cause, problem},
    id::{ConversationId, WorkerId},
};

/// A connection that is not there by then is tried elsewhere.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// A replica's own address is asked for a sign of life for so long.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Addresses that are known to mislead. Replicas come and go, each with another one.
const MISLEADING_MAX: usize = 64;

/// Who this host is to the gateway.
#[derive(Debug, Clone)]
pub struct Identity {
    pub agent: String,
    pub conversation: Option<ConversationId>,
    /// Where whoever started it has named it.
    pub worker: Option<WorkerId>,
    pub name: Option<String>,
    pub token: String,
}

/// The replica that is called.
#[derive(Debug, Clone)]
pub struct Route {
    pub base: String,
    pub registered: Arc<RegisteredHost>,
    /// Which of the given URLs it was found by.
    pub found_by: usize,
}

/// Why a replica does not let this host in.
#[derive(Debug)]
pub enum NoRoute {
    /// Nor will any other.
    Refused(ProblemAnswer),
    /// Another may, or this one later.
    Unreachable(String),
}

/// The way to the gateway.
#[derive(Debug)]
pub struct GatewayLink {
    http: Client,
    /// For registrations: a connection of its own, since a balancer keeps to the replica of an old one.
    fresh: Client,
    urls: Vec<String>,
    identity: Identity,
    worker: Mutex<Option<WorkerId>>,
    /// Addresses of replicas that are not theirs from here, the newest of them.
    misleading: Mutex<VecDeque<String>>,
    route: watch::Sender<Option<Route>>,
}

impl GatewayLink {
    /// A link to a gateway at these URLs, which goes nowhere yet.
    pub fn new(urls: &[String], identity: Identity) -> anyhow::Result<GatewayLink> {
        let mut bases = Vec::with_capacity(urls.len());
        for text in urls {
            let url = Url::parse(text.trim()).map_err(|why| anyhow::anyhow!("`{text}`: {why}"))?;
            anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "`{text}`: needs http:// or https://");
            bases.push(url.as_str().trim_end_matches('/').to_owned());
        }
        anyhow::ensure!(!bases.is_empty(), "no URL to call");
        let client = || {
            let agent = concat!("lastword-work/", env!("CARGO_PKG_VERSION"));
            let client =
                Client::builder().connect_timeout(CONNECT_TIMEOUT).user_agent(agent).tcp_nodelay(true);
            // A proxy of the environment knows nothing of this machine's own ports.
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

    /// How many URLs there are to try.
    pub fn urls(&self) -> usize {
        self.urls.len()
    }

    /// The replica that is called, as it changes.
    pub fn routes(&self) -> watch::Receiver<Option<Route>> {
        self.route.subscribe()
    }

    /// Takes a route, or leaves the one there was.
    pub fn set_route(&self, route: Option<Route>) {
        self.route.send_replace(route);
    }

    /// The same, where it is not an address that was given.
    pub fn note_misleading_unless_given(&self, base: &str) {
        if self.urls.iter().all(|url| url != base) {
            self.note_misleading(base);
        }
    }

    /// The replica's own address leads somewhere else.
    fn note_misleading(&self, base: &str) {
        let mut misleading = self.misleading.lock().unwrap_or_else(PoisonError::into_inner);
        if misleading.iter().any(|known| known == base) {
            return;
        }
        if misleading.len() >= MISLEADING_MAX {
            misleading.pop_front();
        }
        misleading.push_back(base.to_owned());
    }

    /// Registers at the `n`-th URL, counted round and round.
    pub async fn register(&self, n: usize) -> Result<Route, NoRoute> {
        let found_by = n % self.urls.len();
        let base = &self.urls[found_by];
        let worker = *self.worker.lock().unwrap_or_else(PoisonError::into_inner);
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
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered.worker_id);
        let base = self.own_address(base, &registered.url).await.unwrap_or_else(|| base.clone());
        Ok(Route { base, registered: Arc::new(registered), found_by })
    }

    /// The replica's own address, where it is another one and somebody answers there.
    async fn own_address(&self, base: &str, own: &str) -> Option<String> {
        let own = own.trim_end_matches('/');
        let is_known =
            self.misleading.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == own);
        // Loopback of its machine is not loopback of this one.
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

    /// A call in this host's name.
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

    /// A call in a turn's name.
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
