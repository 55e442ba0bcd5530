//! Real replicas over a private Postgres, beside a scripted API server.
//!
//! Owns both, and the wait for a turn's pod. A replica finds the server by a kubeconfig, as outside a cluster.

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    kubelet::Kubelet,
    server::ApiServer,
    support::{Cluster, Event, Plan, Turn, eventually, lay_over},
};

/// A last word's reason must be told this soon after the cluster told it.
pub const SOON: Duration = Duration::from_secs(1);

/// Replicas and a cluster for their pods.
pub struct Field {
    pub kubelet: Kubelet,
    pub replicas: Cluster,
    pub server: ApiServer,
    http: reqwest::Client,
    _home: tempfile::TempDir,
}

impl Deref for Field {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.replicas
    }
}

impl Field {
    pub async fn open(plan: Plan) -> Field {
        let server = ApiServer::start();
        Field::beside(server, plan).await
    }

    /// Replicas beside a server that is there, or not.
    pub async fn beside(server: ApiServer, mut plan: Plan) -> Field {
        let home = tempfile::Builder::new().prefix("lastword-pods-").tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let text = |text: &str| text.to_owned();
        plan.env.push((text("KUBECONFIG"), kubeconfig.display().to_string()));
        plan.env.push((text("LASTWORD_KUBERNETES"), text("true")));
        let replicas = Cluster::with(plan).await;
        let kubelet = Kubelet::new(server.world.clone(), home.path().join("pods"));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Field { kubelet, replicas, server, http, _home: home }
    }

    /// An agent whose workers are pods; `more` is laid over its spec.
    pub async fn pod_agent(&self, name: &str, more: Value) {
        let mut spec = json!({
            "runtime": "kubernetes",
            "command": [crate::support::program(), "demo-agent"],
            "pod": {"image": "registry.example/agent:1"},
        });
        lay_over(&mut spec, more);
        self.put_agent(name, spec).await;
    }

    /// The name of the newest pod of the turn's conversation, when there is one.
    pub async fn pod_of(&self, turn: &Turn) -> String {
        eventually("a pod is asked for", async || self.server.world.pod_of(&turn.conversation)).await
    }

    /// What a worker with this token is answered that wants to serve this agent.
    pub async fn let_in(&self, token: &str, agent: &str) -> StatusCode {
        let url = format!("{}/v1/worker/register", self.url(0));
        let asked = self.http.post(url).bearer_auth(token).json(&json!({"agent": agent}));
        asked.send().await.unwrap().status()
    }

    /// The turn's last word, and how long after `told` it came to a client of replica `i`.
    pub async fn last_word(&self, i: usize, turn: &Turn, told: Instant) -> (Event, Duration) {
        let events = self.watch(i, turn).await;
        (events.last().unwrap().clone(), told.elapsed())
    }
}

/// Fails unless this is a failure of this code, whose message holds `words`.
#[track_caller]
pub fn failed(word: &Event, code: &str, words: &str) {
    assert_eq!((word.kind.as_str(), word.code()), ("failed", code), "{word:?}");
    assert!(word.message().contains(words), "{:?} has no {words:?}", word.message());
}
