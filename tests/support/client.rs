//! The requests of clients and operators to a cluster.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cluster, Event, EventStream, OPERATOR, Outlet, PATIENCE, check_log, eventually, program};

/// How many fresh conversations are tried until one is served where it is wanted.
const TRIES_MAX: usize = 60;
/// Events that one page may have.
const PAGE_ROWS: usize = 1000;

/// A turn that was accepted.
#[derive(Debug, Clone)]
pub struct Turn {
    /// `turn_…`
    pub id: String,
    /// `conv_…`
    pub conversation: String,
    /// As it was answered when it was accepted.
    pub json: Value,
}

/// The worker that received a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSeen {
    /// `wrk_…`
    pub id: String,
    /// What operators see as the turn's worker: the same, or over HTTP its host.
    pub listed: String,
    /// Its process id.
    pub pid: i32,
    /// The index of its replica.
    pub replica: usize,
}

impl Turn {
    /// As it was answered.
    pub fn new(json: Value) -> Turn {
        let text =
            |field: &str| json[field].as_str().unwrap_or_else(|| panic!("no {field}: {json}")).to_owned();
        Turn { id: text("id"), conversation: text("conversation_id"), json: json.clone() }
    }
}

impl Cluster {
    /// Puts an agent as it is.
    pub(super) async fn put_spec(&self, name: &str, spec: Value) {
        let (status, answer) =
            self.ask(self.living()[0], Method::PUT, &format!("/v1/agents/{name}"), Some(spec)).await;
        assert!(status.is_success(), "agent {name}: {status} {answer}");
    }

    /// Puts an agent that runs the demo worker; `more` is laid over its spec.
    pub async fn demo_agent(&self, name: &str, more: Value) {
        let mut spec = json!({"runtime": "process", "command": [program(), "demo-agent"]});
        lay_over(&mut spec, more);
        self.put_agent(name, spec).await;
    }

    /// Posts a turn in a new conversation, at replica `i`.
    pub async fn post(&self, i: usize, agent: &str, text: &str) -> Turn {
        self.post_json(i, json!({"agent": agent, "input": text})).await
    }

    /// Posts a turn that goes on with a conversation, at replica `i`.
    pub async fn post_in(&self, i: usize, conversation: &str, agent: &str, text: &str) -> Turn {
        self.post_json(i, json!({"agent": agent, "input": text, "conversation_id": conversation})).await
    }

    /// Posts a turn as it is, at replica `i`.
    pub async fn post_json(&self, i: usize, turn: Value) -> Turn {
        let (status, answer) = self.ask(i, Method::POST, "/v1/turns", Some(turn)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        Turn::new(answer)
    }

    /// Finds a fresh conversation whose warm worker lives on replica `wanted`, and returns it. Its
    /// next turn very likely runs there too: that replica has a head start, which a busy machine
    /// can make it lose.
    pub async fn conversation_on(&self, wanted: usize, agent: &str) -> String {
        for _ in 0..TRIES_MAX {
            let turn = self.post(wanted, agent, "hello").await;
            let events = self.watch(self.living()[0], &turn).await;
            assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
            if self.worker_of(&turn).await.replica == wanted {
                return turn.conversation;
            }
        }
        panic!("{TRIES_MAX} conversations, and none on replica {wanted}");
    }

    /// Posts a turn until one runs on replica `wanted`; the others are cancelled. It is the second
    /// of its conversation.
    pub async fn post_on(&self, wanted: usize, agent: &str, text: &str) -> Turn {
        for _ in 0..TRIES_MAX {
            let conversation = self.conversation_on(wanted, agent).await;
            let turn = self.post_in(wanted, &conversation, agent, text).await;
            if self.worker_of(&turn).await.replica == wanted {
                return turn;
            }
            self.cancel(wanted, &turn).await;
        }
        panic!("{TRIES_MAX} turns, and none on replica {wanted}");
    }

    /// Posts `first` to a fresh conversation and, when it is completed, `second`, until one worker
    /// has served both. A replica that is slow to claim may lose a turn to one without the worker.
    pub async fn post_twice(&self, agent: &str, first: &str, second: &str) -> (Turn, Turn) {
        for _ in 0..TRIES_MAX {
            let before = self.post(self.living()[0], agent, first).await;
            let events = self.watch(self.living()[0], &before).await;
            assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
            let worker = self.worker_of(&before).await;
            let turn = self.post_in(worker.replica, &before.conversation, agent, second).await;
            if self.worker_of(&turn).await == worker {
                return (before, turn);
            }
            self.cancel(worker.replica, &turn).await;
        }
        panic!("{TRIES_MAX} conversations, and no worker served two turns");
    }

    /// Reads a path that must answer 200, at replica `i`.
    pub async fn get(&self, i: usize, path: &str) -> Value {
        let (status, answer) = self.ask(i, Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    /// What replica `i` measures.
    pub async fn metrics(&self, i: usize) -> String {
        let asked = self.http.get(format!("{}/metrics", self.url(i))).bearer_auth(OPERATOR);
        asked.timeout(PATIENCE).send().await.unwrap().text().await.unwrap()
    }

    /// Any request with an operator's token; null for an answer without a body.
    pub async fn ask(
        &self,
        i: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url(i)));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request
            .bearer_auth(OPERATOR)
            .header("accept", "application/json")
            .timeout(PATIENCE)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Cancels a turn, at replica `i`.
    pub async fn cancel(&self, i: usize, turn: &Turn) -> StatusCode {
        self.ask(i, Method::POST, &format!("/v1/turns/{}/cancel", turn.id), None).await.0
    }

    /// Answers a question, at replica `i`.
    pub async fn answer(&self, i: usize, turn: &Turn, ask_id: &str, answer: Value) -> (StatusCode, Value) {
        let body = json!({"ask_id": ask_id, "answer": answer});
        self.ask(i, Method::POST, &format!("/v1/turns/{}/answers", turn.id), Some(body)).await
    }

    /// Opens a turn's event stream after `after`, -1 for all of it, at replica `i`.
    pub async fn stream(&self, i: usize, turn: &str, after: i64) -> EventStream {
        let url = format!("{}/v1/turns/{turn}/events?after={after}", self.url(i));
        let asked = self.http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream");
        let answer = asked.send().await.unwrap();
        EventStream::new(answer, turn, after)
    }

    /// A whole turn as replica `i` streams it.
    pub async fn watch(&self, i: usize, turn: &Turn) -> Vec<Event> {
        self.stream(i, &turn.id, -1).await.until_terminal(PATIENCE).await
    }

    /// A whole turn as every living replica streams it: all the same, and the turn's own status and
    /// its stored log say so too.
    pub async fn watch_all(&self, turn: &Turn) -> Vec<Event> {
        let living = self.living();
        let seen = join_all(living.iter().map(|&i| self.watch(i, turn))).await;
        for (n, events) in seen.iter().enumerate() {
            assert_eq!(events, &seen[0], "replicas {} and {} differ", living[n], living[0]);
        }
        let events = seen.into_iter().next().expect("a living replica");
        let last = events.last().unwrap();
        for &i in &living {
            let now = self.get(i, &format!("/v1/turns/{}", turn.id)).await;
            assert_eq!(now["status"], last.kind.as_str(), "the turn and its last word differ");
            assert_eq!(now["error"], last.data["error"], "the turn's error is not its last word's");
        }
        assert_eq!(self.log_of(living[living.len() - 1], turn).await, events, "the stored log differs");
        events
    }

    /// A turn's whole log so far, as a list.
    pub async fn events(&self, i: usize, turn: &Turn) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.len() as i64 - 1;
            let path = format!("/v1/turns/{}/events?limit={PAGE_ROWS}&after={after}", turn.id);
            let (status, page) = self.ask(i, Method::GET, &path, None).await;
            if status == StatusCode::NO_CONTENT {
                return events;
            }
            let items =
                page["events"].as_array().unwrap_or_else(|| panic!("{path}: {status} {page}")).clone();
            let is_last = items.len() < PAGE_ROWS;
            events.extend(items.into_iter().map(Event::new));
            // Not until a page is empty: a turn that goes on may always have one more.
            if is_last {
                return events;
            }
        }
    }

    /// The log of a turn that has ended.
    async fn log_of(&self, i: usize, turn: &Turn) -> Vec<Event> {
        let events = self.events(i, turn).await;
        check_log(&events, 0);
        events
    }

    /// The worker that received a turn last; waits until one has.
    pub async fn worker_of(&self, turn: &Turn) -> WorkerSeen {
        let i = self.living()[0];
        let id = eventually("a worker receives the turn", async || {
            let events = self.events(i, turn).await;
            let started = events.iter().rfind(|event| event.kind == "started");
            started.and_then(|event| event.data["worker_id"].as_str()).map(str::to_owned)
        });
        let listed = id.await;
        let worker = self.worker(&listed).await;
        let replica = self.replica_of(worker["replica_id"].as_str().unwrap()).await;
        let (id, pid) = match self.outlet() {
            Outlet::Log => (listed.clone(), i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()),
            Outlet::Http => self.process_of(turn).await,
        };
        WorkerSeen { id, listed, pid, replica }
    }

    /// A worker as operators see it, also one that has ended; waits until it was recorded.
    pub async fn worker(&self, id: &str) -> Value {
        let i = self.living()[0];
        eventually("the worker is recorded", async || {
            let (status, worker) = self.ask(i, Method::GET, &format!("/v1/workers/{id}"), None).await;
            (status == StatusCode::OK).then_some(worker)
        })
        .await
    }

    /// The workers that live, as operators see them.
    pub async fn workers(&self) -> Vec<Value> {
        let page = self.get(self.living()[0], "/v1/workers?limit=200").await;
        page["items"].as_array().unwrap().clone()
    }

    /// The index of the replica with this id. Ids change, processes do not.
    pub async fn replica_of(&self, id: &str) -> usize {
        let page = self.get(self.living()[0], "/v1/replicas?limit=200").await;
        let replica = page["items"].as_array().unwrap().iter().find(|replica| replica["id"] == id).cloned();
        let pid = replica.unwrap_or_else(|| panic!("no replica {id}: {page}"))["pid"].as_i64().unwrap();
        (0..self.replicas()).find(|&n| i64::from(self.pid(n)) == pid).expect("one of ours")
    }

    /// Waits until the worker has ended; how it did, as operators see it: listed, or over HTTP in the host's log.
    pub async fn ended(&self, worker: &str) -> Value {
        eventually("the worker ends", async || match self.outlet() {
            Outlet::Log => Some(self.worker(worker).await).filter(|seen| seen["state"] == "ended"),
            Outlet::Http => self.process_ended(worker),
        })
        .await
    }

    /// Opens the stream of replica `i` and waits for the turn's first event of this kind.
    pub async fn until(&self, i: usize, turn: &Turn, kind: &str, at_most: Duration) -> Event {
        self.stream(i, &turn.id, -1).await.until(kind, at_most).await
    }
}

/// What `over` names replaces what `under` has, object by object.
pub fn lay_over(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                lay_over(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}
