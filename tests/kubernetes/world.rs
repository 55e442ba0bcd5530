//! The cluster behind the scripted API server: pods, their versions, and planned failures.
//!
//! Owns the history that watches are served from, and the answers to the next creations. It does nothing by itself: a
//! pod stays as it was created until the test changes its status.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::watch;

/// What a cluster holds.
pub struct World {
    inner: Mutex<Inner>,
    /// Counts every change, and every cut.
    pub changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    pods: BTreeMap<String, Value>,
    history: Vec<Change>,
    /// Versions before this one are forgotten.
    oldest: u64,
    /// By the agent whose pod is asked for; the empty name is anybody's.
    answers: BTreeMap<String, VecDeque<Value>>,
    asked: Vec<String>,
    cuts: u64,
    is_gone_by_status: bool,
}

/// One change of a pod.
#[derive(Clone)]
pub struct Change {
    pub version: u64,
    pub kind: &'static str,
    pub pod: Value,
}

impl Default for World {
    fn default() -> Self {
        let inner = Inner { version: 1, ..Inner::default() };
        World { inner: Mutex::new(inner), changed: watch::Sender::new(0) }
    }
}

impl World {
    /// What the next creations are answered, one each, as `Status` objects with a `code`.
    pub fn answer_next(&self, code: u16, reason: &str, message: &str) {
        self.answer_agent("", status(code, reason, message));
    }

    /// What the next creation for this agent is answered.
    pub fn answer_agent(&self, agent: &str, status: Value) {
        self.lock().answers.entry(agent.to_owned()).or_default().push_back(status);
    }

    /// The same, with the number of seconds after which the server wants to be asked again.
    pub fn answer_next_after(&self, code: u16, seconds: u32) {
        let mut status = status(code, "TooManyRequests", "too many requests");
        status["details"] = json!({"retryAfterSeconds": seconds});
        self.answer_agent("", status);
    }

    /// How many answers still wait for this agent.
    pub fn answers_left(&self, agent: &str) -> usize {
        self.lock().answers.get(agent).map_or(0, VecDeque::len)
    }

    pub fn create(&self, mut pod: Value) -> Result<Value, Value> {
        let mut inner = self.lock();
        let agent = pod["metadata"]["labels"]["lastword/agent"].as_str().unwrap_or_default().to_owned();
        for whose in ["", &agent] {
            if let Some(answer) = inner.answers.get_mut(whose).and_then(VecDeque::pop_front) {
                return Err(answer);
            }
        }
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        if inner.pods.contains_key(&name) {
            return Err(status(409, "AlreadyExists", &format!("pods \"{name}\" already exists")));
        }
        pod["metadata"]["uid"] = json!(format!("uid-of-{name}"));
        pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["status"] = json!({"phase": "Pending"});
        let made = inner.change("ADDED", &name, pod);
        drop(inner);
        self.ring();
        Ok(made)
    }

    /// Lays a status over a pod's.
    pub fn set_status(&self, name: &str, status: Value) {
        let mut inner = self.lock();
        let mut pod = inner.pods.get(name).unwrap_or_else(|| panic!("no pod {name}")).clone();
        pod["status"] = status;
        inner.change("MODIFIED", name, pod);
        drop(inner);
        self.ring();
    }

    /// The worker's container is in this state, and the pod in this phase.
    pub fn set_worker(&self, name: &str, phase: &str, state: Value) {
        let worker = json!({"name": "worker", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
            "state": state});
        self.set_status(name, json!({"phase": phase, "containerStatuses": [worker]}));
    }

    /// Somebody asks the pod to end: it is marked, and stays.
    pub fn mark_deleted(&self, name: &str) {
        let mut inner = self.lock();
        let mut pod = inner.pods.get(name).unwrap().clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
        inner.change("MODIFIED", name, pod);
        drop(inner);
        self.ring();
    }

    /// The pod is gone; false where there is none.
    pub fn remove(&self, name: &str) -> bool {
        let mut inner = self.lock();
        let Some(pod) = inner.pods.remove(name) else { return false };
        inner.change("DELETED", name, pod);
        inner.pods.remove(name);
        drop(inner);
        self.ring();
        true
    }

    /// The pod is gone, and no watch will ever tell: it went while nobody could see.
    pub fn remove_unseen(&self, name: &str) {
        let mut inner = self.lock();
        inner.pods.remove(name).unwrap();
        inner.version += 1;
        inner.oldest = inner.version;
    }

    /// Says 410 by the status of the answer from now on, and not by an event.
    pub fn say_gone_by_status(&self) {
        self.lock().is_gone_by_status = true;
    }

    pub fn is_gone_by_status(&self) -> bool {
        self.lock().is_gone_by_status
    }

    /// Cuts every watch that is open.
    pub fn cut_watches(&self) {
        self.lock().cuts += 1;
        self.ring();
    }

    pub fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    pub fn list(&self) -> (u64, Vec<Value>) {
        let inner = self.lock();
        (inner.version, inner.pods.values().cloned().collect())
    }

    /// What happened after `version`; `None` where that is forgotten.
    pub fn since(&self, version: u64) -> Option<(u64, Vec<Change>)> {
        let inner = self.lock();
        let is_known = version >= inner.oldest;
        let new = inner.history.iter().filter(|change| change.version > version).cloned().collect();
        is_known.then_some((inner.version, new))
    }

    pub fn note(&self, asked: String) {
        self.lock().asked.push(asked);
        self.ring();
    }

    /// Requests so far that begin so, such as `POST`.
    pub fn asked(&self, beginning: &str) -> Vec<String> {
        self.lock().asked.iter().filter(|asked| asked.starts_with(beginning)).cloned().collect()
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.lock().pods.get(name).cloned()
    }

    /// The newest pod of a conversation.
    pub fn pod_of(&self, conversation: &str) -> Option<String> {
        let inner = self.lock();
        let is_its = |pod: &&Value| pod["metadata"]["labels"]["lastword/conversation"] == conversation;
        let pod = inner.pods.values().filter(is_its).max_by_key(|pod| version_of(pod))?;
        pod["metadata"]["name"].as_str().map(str::to_owned)
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().pods.keys().cloned().collect()
    }

    fn ring(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn change(&mut self, kind: &'static str, name: &str, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.pods.insert(name.to_owned(), pod.clone());
        self.history.push(Change { version: self.version, kind, pod: pod.clone() });
        pod
    }
}

fn version_of(pod: &Value) -> u64 {
    pod["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A `Status`, as the API server refuses with.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message, "metadata": {}})
}
