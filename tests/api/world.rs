//! A gateway for these tests: a private Postgres, replicas that serve, and the test's part of the engine.

use std::{
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lastword::{
    agent::Runtime,
    api::{self, Gateway},
    config::Config,
    event::{Kind, NewEvent},
    id::TurnId,
    rendezvous::Rendezvous,
    store::{
        Store,
        batch_reader::read_on,
        claim::Ready,
        events::{Append, Finish, TurnClock},
        group_commit::{Writer, Written, write_on},
        notify_listener::listen_on,
        notify_sender::ring_on,
        poller::look_on,
        queue_hints::FRONT,
    },
    task::{self, Supervisor},
    turn::LastWord,
};
use lastword_devkit::postgres::Postgres;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub const OPERATOR: &str = "operator-token-of-a-test";
const PATIENCE: Duration = Duration::from_secs(20);

/// The server that tests share while any of them runs; each has a database of its own.
static SHARED: Mutex<Weak<Mutex<Postgres>>> = Mutex::new(Weak::new());

/// One database and one replica on it.
pub struct World {
    pub replica: Replica,
    pub server: Arc<Mutex<Postgres>>,
    pub database_url: String,
}

/// A gateway that listens.
pub struct Replica {
    pub store: Store,
    pub rendezvous: Arc<Rendezvous>,
    pub supervisor: Supervisor,
    pub url: String,
    http: reqwest::Client,
    writer: Writer,
    stop: CancellationToken,
}

impl World {
    pub async fn start() -> World {
        World::with(|_| {}).await
    }

    /// A world whose replica is configured otherwise. The agent `demo` is there.
    pub async fn with(change: impl FnOnce(&mut Config)) -> World {
        let server = {
            let mut shared = SHARED.lock().unwrap();
            shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(Mutex::new(Postgres::for_test().unwrap()));
                *shared = Arc::downgrade(&server);
                server
            })
        };
        let url = server.lock().unwrap().url();
        let database_url = own_database(&url).await;
        World::on(server, database_url, change).await
    }

    /// A world whose server nobody else uses, so that it can be stopped.
    pub async fn alone(change: impl FnOnce(&mut Config)) -> World {
        let server = Postgres::for_test().unwrap();
        let url = server.url();
        World::on(Arc::new(Mutex::new(server)), url, change).await
    }

    async fn on(
        server: Arc<Mutex<Postgres>>,
        database_url: String,
        change: impl FnOnce(&mut Config),
    ) -> World {
        let replica = Replica::start(&database_url, change).await;
        replica.store.put_agent("demo", Some(&demo())).await.unwrap();
        World { replica, server, database_url }
    }

    /// Another replica on the same database.
    pub async fn another(&self, change: impl FnOnce(&mut Config)) -> Replica {
        Replica::start(&self.database_url, change).await
    }
}

/// A fresh database on the server, and its URL.
async fn own_database(url: &str) -> String {
    use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
    let name = format!("t{:016x}", rand::random::<u64>());
    let mut conn = PgConnection::connect(url).await.unwrap();
    conn.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    url.rsplit_once('/').map(|(server, _)| format!("{server}/{name}")).unwrap()
}

impl std::ops::Deref for World {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

pub fn demo() -> lastword::agent::AgentSpec {
    lastword::agent::AgentSpec::process(vec!["true".to_owned()])
}

impl Replica {
    async fn start(database_url: &str, change: impl FnOnce(&mut Config)) -> Replica {
        let mut config = Config {
            database_url: database_url.to_owned(),
            operator_tokens: vec![OPERATOR.to_owned()],
            // Client routes are open beside them.
            insecure: true,
            ..Config::default()
        };
        change(&mut config);
        config.validate().unwrap();
        let store = Store::open(&config).unwrap();
        store.migrate().await.unwrap();
        let (supervisor, stop) = (Supervisor::new(), CancellationToken::new());
        let (writer, inbox) = Writer::new();
        let background = task::TaskKind::Client;
        supervisor.spawn(background, "ring", ring_on(store.clone(), stop.clone()));
        supervisor.spawn(background, "listen", listen_on(store.clone(), stop.clone()));
        supervisor.spawn(background, "look", look_on(store.clone(), stop.clone()));
        supervisor.spawn(background, "read", read_on(store.clone(), stop.clone()));
        supervisor.spawn(background, "write", write_on(store.clone(), inbox, stop.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        store.register(&url, store.timeline().await.unwrap()).await.unwrap();
        let rendezvous = Arc::<Rendezvous>::default();
        let gateway = Gateway::new(store.clone(), rendezvous.clone(), Arc::new(config), supervisor.clone());
        let serve = api::serve(listener, gateway, stop.clone());
        supervisor.spawn(background, "serve", serve);
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Replica { store, rendezvous, supervisor, url, http, writer, stop }
    }

    /// Takes no more connections, and ends those that are there with what is under way.
    pub fn close(&self) {
        self.stop.cancel();
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    pub fn as_operator(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(OPERATOR)
    }

    /// Makes a turn for `demo`, with these fields beside, and gives the turn's object.
    pub async fn make_turn(&self, fields: Value) -> Value {
        let mut body = json!({"agent": "demo", "input": "hello"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = self.post("/v1/turns", &body).await;
        assert_eq!(answer.status(), 202);
        answer.json().await.unwrap()
    }

    /// Opens a turn's event stream after a cursor.
    pub async fn stream(&self, turn: &str, after: i32) -> Response {
        let path = format!("/v1/turns/{turn}/events?after={after}");
        let answer = self.request(Method::GET, &path).header("accept", "text/event-stream").send().await;
        answer.unwrap()
    }

    /// Claims the oldest turn that waits and starts it, as an engine would.
    pub async fn run_next(&self) -> Run<'_> {
        let claims = self.store.claim(&[Runtime::Process], &Ready::default(), FRONT, 1).await.unwrap();
        let claim = claims.first().expect("a turn that waits");
        let seq = self.store.start(claim, None).await.unwrap().expect("the claim holds");
        Run { replica: self, turn: claim.turn, epoch: claim.epoch, seq }
    }

    /// The first attempt of a turn, after its newest event.
    pub fn resume(&self, turn: TurnId, seq: i32) -> Run<'_> {
        Run { replica: self, turn, epoch: 1, seq }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.supervisor.soft().cancel();
        self.supervisor.hard().cancel();
        self.stop.cancel();
    }
}

/// A turn that runs.
pub struct Run<'r> {
    replica: &'r Replica,
    pub turn: TurnId,
    epoch: i32,
    pub seq: i32,
}

impl Run<'_> {
    /// Appends one event whose fields are this text.
    pub async fn say(&mut self, kind: Kind, data: impl Into<String>) {
        let append = Append {
            turn: self.turn,
            epoch: self.epoch,
            base: self.seq,
            events: vec![NewEvent { kind, data: data.into() }],
            clock: TurnClock::Progress,
            budget_ms: 120_000,
        };
        self.seq += 1;
        assert_eq!(self.replica.writer.append(append).await, Written::Done(self.seq));
    }

    pub async fn complete(self, text: &str) {
        self.end(Kind::Completed, json!({"text": text, "stop_reason": "end"}).to_string()).await;
    }

    pub async fn end(self, kind: Kind, data: String) {
        let word = LastWord { kind, data, label: "".into() };
        let finish = Finish { turn: self.turn, epoch: self.epoch, base: self.seq, said: Vec::new(), word };
        assert!(matches!(self.replica.writer.finish(finish).await, Written::Done(_)));
    }
}

/// What of a stream has been read so far.
pub struct Frames {
    response: Response,
    pub text: String,
}

impl Frames {
    pub fn of(response: Response) -> Frames {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Frames { response, text: String::new() }
    }

    /// Reads until the text contains something.
    pub async fn until(&mut self, wanted: &str) {
        while !self.text.contains(wanted) {
            let chunk = self.response.chunk().await.unwrap();
            let chunk = chunk.unwrap_or_else(|| panic!("ended before {wanted:?}: {}", self.text));
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Reads to the end; an error where the end is not clean.
    pub async fn end(mut self) -> Result<String, (String, reqwest::Error)> {
        loop {
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                Ok(None) => return Ok(self.text),
                Err(why) => return Err((self.text, why)),
            }
        }
    }
}

/// Kinds of the events in a stream's text, in order.
pub fn kinds(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// A refusal's document, its shape checked.
pub async fn problem(response: Response) -> Value {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["status"], status, "{document}");
    for field in ["type", "title", "code", "detail"] {
        assert!(document[field].is_string(), "{field}: {document}");
    }
    document
}

/// Asks again until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let asked = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"));
}
