//! A scripted API server over HTTP: the few paths that the runtime calls, over a [`World`].
//!
//! Owns the listener, and its outage: every connection is cut at once, and the port answers nothing until the server
//! returns. It runs on an async runtime of its own, so that its end is as sudden as that of a process.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it stands outside any replica")]

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{Request, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, time::Instant};

use crate::world::{World, status};

/// How long its last tasks may take.
const END_MAX: Duration = Duration::from_secs(10);
/// How often a watch says how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_millis(500);

/// An API server.
pub struct ApiServer {
    pub world: Arc<World>,
    address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
}

impl ApiServer {
    /// Serves an empty cluster on a free port.
    pub fn start() -> ApiServer {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let server = ApiServer { world: Arc::default(), address, runtime: Mutex::default() };
        server.come_back();
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for it, as a file's text.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "preferences": {},
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "agents"}}],
        })
        .to_string()
    }

    /// Cuts every connection and answers nothing any more.
    pub fn go_away(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        // On a thread of its own: it may wait, so that the port is free after.
        let ending = runtime.map(|runtime| std::thread::spawn(|| runtime.shutdown_timeout(END_MAX)));
        ending.into_iter().for_each(|ending| ending.join().unwrap());
    }

    /// Answers again, on the same port.
    pub fn come_back(&self) {
        let mut runtime = self.runtime.lock().unwrap();
        assert!(runtime.is_none(), "it is there");
        let fresh =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let router = router(self.world.clone());
        fresh.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        *runtime = Some(fresh);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
    }
}

fn router(world: Arc<World>) -> Router {
    let noting = middleware::from_fn_with_state(world.clone(), note);
    Router::new()
        .route("/api/v1/namespaces/{namespace}/pods", get(list_or_watch).post(create))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", get(read).delete(delete))
        .route("/apis/apps/v1/namespaces/{namespace}/deployments/{name}", get(deployment))
        .layer(noting)
        .with_state(world)
}

async fn note(State(world): State<Arc<World>>, request: Request<Body>, next: Next) -> Response {
    world.note(format!("{} {}", request.method(), request.uri()));
    next.run(request).await
}

fn refuse(status: Value) -> Response {
    let code = StatusCode::from_u16(u16::try_from(status["code"].as_u64().unwrap()).unwrap()).unwrap();
    (code, Json(status)).into_response()
}

async fn create(State(world): State<Arc<World>>, Json(pod): Json<Value>) -> Response {
    match world.create(pod) {
        Ok(made) => (StatusCode::CREATED, Json(made)).into_response(),
        Err(status) => refuse(status),
    }
}

async fn read(State(world): State<Arc<World>>, Path((_, name)): Path<(String, String)>) -> Response {
    match world.pod(&name) {
        Some(pod) => Json(pod).into_response(),
        None => refuse(status(404, "NotFound", "no such pod")),
    }
}

async fn delete(State(world): State<Arc<World>>, Path((_, name)): Path<(String, String)>) -> Response {
    match world.pod(&name) {
        Some(pod) => {
            world.remove(&name);
            Json(pod).into_response()
        }
        None => refuse(status(404, "NotFound", "no such pod")),
    }
}

async fn deployment(Path((_, name)): Path<(String, String)>) -> Response {
    let metadata = json!({"name": name, "uid": format!("uid-of-{name}")});
    Json(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}))
        .into_response()
}

async fn list_or_watch(
    State(world): State<Arc<World>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    if query.get("watch").is_none_or(|watch| watch != "true" && watch != "1") {
        let (version, pods) = world.list();
        let items: Vec<Value> = pods.into_iter().filter(|pod| is_selected(pod, &selector)).collect();
        let metadata = json!({"resourceVersion": version.to_string()});
        return Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}))
            .into_response();
    }
    let version = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    if world.is_gone_by_status() && world.since(version).is_none() {
        return refuse(status(410, "Expired", "too old resource version"));
    }
    let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(290);
    let watch = Watch {
        cuts: world.cuts(),
        changed: world.changed.subscribe(),
        world,
        selector,
        version,
        until: Instant::now() + Duration::from_secs(seconds),
        is_over: false,
    };
    Body::from_stream(stream::unfold(watch, Watch::next)).into_response()
}

fn is_selected(pod: &Value, selector: &str) -> bool {
    let mut pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
    pairs.all(|(name, value)| pod["metadata"]["labels"][name] == value)
}

/// One watch that is open.
struct Watch {
    world: Arc<World>,
    selector: String,
    version: u64,
    until: Instant,
    cuts: u64,
    changed: tokio::sync::watch::Receiver<u64>,
    is_over: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Watch)> {
        loop {
            self.changed.mark_unchanged();
            if self.is_over {
                return None;
            }
            if self.world.cuts() != self.cuts {
                self.is_over = true;
                return Some((Err(io::ErrorKind::ConnectionReset.into()), self));
            }
            let Some((version, changes)) = self.world.since(self.version) else {
                self.is_over = true;
                let gone = line("ERROR", &status(410, "Expired", "too old resource version"));
                return Some((Ok(gone), self));
            };
            self.version = version;
            let selected = changes.iter().filter(|change| is_selected(&change.pod, &self.selector));
            let lines: Vec<u8> = selected.flat_map(|change| line(change.kind, &change.pod)).collect();
            if !lines.is_empty() {
                return Some((Ok(lines.into()), self));
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.until) => return None,
                () = tokio::time::sleep(BOOKMARK_EVERY) => {
                    let metadata = json!({"resourceVersion": self.version.to_string()});
                    let mark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata});
                    return Some((Ok(line("BOOKMARK", &mark)), self));
                }
            }
        }
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}
