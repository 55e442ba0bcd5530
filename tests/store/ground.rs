//! The fixtures of these tests: a Postgres, a database for each case, replicas that consist of a store only, and turns
//! at each step of their life.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lastword::{
    agent::{AgentSpec, Retry, Runtime},
    config::Config,
    event::{Kind, NewEvent},
    id::{ConversationId, ReplicaId, TurnId, WorkerId},
    store::{
        Store, StoreError,
        accept::{IfBusy, NewTurn},
        claim::Claim,
        claim::Ready,
        events::{Append, Finish, TurnClock},
        group_commit::{Writer, Written, write_on},
        queue_hints::FRONT,
        turns::Agent,
    },
    turn::LastWord,
    units::Span,
};
use lastword_devkit::postgres::Postgres;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Postgres for many cases, each with a database of its own.
pub struct Server {
    postgres: Postgres,
    databases: AtomicU32,
}

impl Server {
    /// Starts one, and makes the schema once, to be copied.
    pub async fn start() -> Server {
        let server = Server { postgres: Postgres::for_test().unwrap(), databases: AtomicU32::new(0) };
        let model = server.make("model", "template1").await;
        let store = model.open();
        store.migrate().await.unwrap();
        // A database with sessions cannot be copied.
        store.close().await;
        model.sql.close().await;
        server
    }

    /// A database with the schema of this release.
    pub async fn ground(&self) -> Ground {
        self.make(&self.next_name(), "model").await
    }

    /// A database with nothing in it.
    pub async fn bare_ground(&self) -> Ground {
        self.make(&self.next_name(), "template1").await
    }

    fn next_name(&self) -> String {
        format!("case_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }

    async fn make(&self, name: &str, model: &str) -> Ground {
        let mut conn = PgConnection::connect(&self.postgres.url()).await.unwrap();
        // Two copies of template1 at once may be refused, since each is a session in it for a moment.
        until("a database", async || {
            let make = format!("create database {name} template {model}");
            sqlx::query(AssertSqlSafe(make)).execute(&mut conn).await.ok()
        })
        .await;
        let url = self.postgres.url();
        let (place, _) = url.rsplit_once('/').unwrap();
        let url = format!("{place}/{name}");
        Ground::at(url).await
    }
}

/// One case's database.
pub struct Ground {
    pub sql: PgPool,
    pub url: String,
}

impl Ground {
    /// A database that is there.
    pub async fn at(url: String) -> Ground {
        Ground { sql: PgPool::connect(&url).await.unwrap(), url }
    }

    /// The same database, by sessions that begin now.
    pub async fn anew(self) -> Ground {
        self.sql.close().await;
        Ground::at(self.url).await
    }

    /// A store that is no replica yet.
    pub fn open(&self) -> Store {
        Store::open(&Config { database_url: self.url.clone(), ..Config::default() }).unwrap()
    }

    /// A registered replica.
    pub async fn replica(&self) -> Replica {
        self.replica_of(self.open()).await
    }

    /// A registered replica of this store.
    pub async fn replica_of(&self, store: Store) -> Replica {
        store.register("http://127.0.0.1:1", store.timeline().await.unwrap()).await.unwrap();
        let (writer, inbox) = Writer::new();
        tokio::spawn(write_on(store.clone(), inbox, CancellationToken::new()));
        Replica { store, writer }
    }

    /// Runs SQL of the test's own; how many rows it touched.
    pub async fn run(&self, sql: &str) -> Result<u64, sqlx::Error> {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.sql).await.map(|done| done.rows_affected())
    }

    /// The first column of the first row, as text.
    pub async fn ask(&self, sql: &str) -> String {
        sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(format!("select ({sql})::text")))
            .fetch_one(&self.sql)
            .await
            .unwrap()
            .unwrap_or_default()
    }

    /// Every row that a turn has anywhere, to see that nothing of it changed.
    pub async fn everything_of(&self, turn: TurnId) -> String {
        let id = turn.0;
        self.ask(&format!(
            "select jsonb_build_array(
               (select to_jsonb(t) from turns t where id = '{id}'),
               (select to_jsonb(i) from inflight i where turn_id = '{id}'),
               (select jsonb_agg(to_jsonb(e) order by seq) from turn_events e where turn_id = '{id}'),
               (select jsonb_agg(to_jsonb(c) order by id) from commands c where turn_id = '{id}'))"
        ))
        .await
    }

    /// Marks a replica as lost, as a verdict does.
    pub async fn lose(&self, replica: ReplicaId) {
        let lost = format!(
            "update replicas set state = 'lost', gone_at = clock_timestamp()
              where id = '{}' and gone_at is null",
            replica.0
        );
        assert_eq!(self.run(&lost).await.unwrap(), 1, "{replica} had no row at work");
    }

    /// Sets a held turn's deadline a moment back.
    pub async fn lapse(&self, turn: TurnId) {
        let lapsed = format!(
            "update inflight set deadline = clock_timestamp() - interval '1 ms' where turn_id = '{}'",
            turn.0
        );
        assert_eq!(self.run(&lapsed).await.unwrap(), 1, "{turn} is not in flight");
    }

    /// The kinds of a turn's events, in order.
    pub async fn kinds(&self, turn: TurnId) -> String {
        self.ask(&format!(
            "select string_agg(kind, ' ' order by seq) from turn_events where turn_id = '{}'",
            turn.0
        ))
        .await
    }

    /// `verify` finds nothing.
    pub async fn assert_whole(&self) {
        let findings = self.open().verify().await.unwrap();
        let broken: Vec<_> = findings.iter().filter(|finding| !finding.broken.is_empty()).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

pub struct Replica {
    pub store: Store,
    pub writer: Writer,
}

impl Replica {
    /// Accepts a turn in a conversation of its own.
    pub async fn accept(&self) -> NewTurn {
        let new = fresh(&self.store);
        self.store.accept(&new).await.unwrap();
        new
    }

    /// Accepts a turn in a conversation of its own and claims it.
    pub async fn claimed(&self) -> Claim {
        let turn = self.accept().await.id;
        self.claim_of(turn).await
    }

    /// Accepts a turn in a conversation of its own, claims and starts it.
    pub async fn running(&self) -> (Claim, i32) {
        let claim = self.claimed().await;
        let seq = self.start(&claim).await.unwrap();
        (claim, seq)
    }

    /// Claims until it holds this turn. What else it claims is given back.
    pub async fn claim_of(&self, turn: TurnId) -> Claim {
        until("the turn's claim", async || {
            let claims = self.claim(100).await;
            let (mine, others): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim.turn == turn);
            for other in others {
                assert!(self.store.release(other.turn, other.epoch, false).await.unwrap());
            }
            mine.into_iter().next()
        })
        .await
    }

    /// Whatever there is to claim.
    pub async fn claim(&self, limit: i64) -> Vec<Claim> {
        self.store.claim(&[Runtime::Process], &Ready::default(), FRONT, limit).await.unwrap()
    }

    pub async fn start(&self, claim: &Claim) -> Option<i32> {
        let worker = WorkerId(self.store.clock().mint());
        self.store.start(claim, Some(worker)).await.unwrap()
    }

    pub async fn append(&self, claim: &Claim, base: i32, kind: Kind) -> Written {
        self.writer.append(append_of(claim, base, kind)).await
    }

    pub async fn finish(&self, claim: &Claim, base: i32) -> Written {
        self.writer.finish(finish_of(claim, base)).await
    }
}

/// A turn in a conversation of its own, to be accepted.
pub fn fresh(store: &Store) -> NewTurn {
    let conversation = ConversationId(store.clock().mint());
    NewTurn { is_new_conversation: true, ..next_in(store, conversation) }
}

/// A turn in a conversation that is there.
pub fn next_in(store: &Store, conversation: ConversationId) -> NewTurn {
    NewTurn {
        id: TurnId(store.clock().mint()),
        conversation,
        is_new_conversation: false,
        agent: agent(|_| ()),
        input: json!({ "text": "hello" }).to_string(),
        metadata: None,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        retry_of: None,
        idempotency: None,
        if_busy: IfBusy::Queue,
        depth_max: 100,
        queue_max: 10_000,
    }
}

/// The agent of these tests, with changes to its spec.
pub fn agent(change: impl FnOnce(&mut AgentSpec)) -> Agent {
    let mut spec = AgentSpec::process(vec!["true".to_owned()]);
    change(&mut spec);
    Agent::new("demo", 1, spec)
}

/// An agent whose turns may be run again before they said anything.
pub fn safe_agent() -> Agent {
    agent(|spec| spec.retry = Retry::Safe)
}

/// An agent with a queue clock of 100 ms.
pub fn hasty_agent() -> Agent {
    agent(|spec| spec.timeouts.queue = Span(Duration::from_millis(100)))
}

pub fn append_of(claim: &Claim, base: i32, kind: Kind) -> Append {
    Append {
        turn: claim.turn,
        epoch: claim.epoch,
        base,
        events: vec![NewEvent::new(kind, &json!({ "text": "word " }))],
        clock: TurnClock::Progress,
        budget_ms: 60_000,
    }
}

pub fn finish_of(claim: &Claim, base: i32) -> Finish {
    let data = json!({ "text": "word", "stop_reason": "end" }).to_string();
    let word = LastWord { kind: Kind::Completed, data, label: "".into() };
    Finish { turn: claim.turn, epoch: claim.epoch, base, said: Vec::new(), word }
}

/// The last word of a turn, as the log has it.
pub async fn last_word(store: &Store, turn: TurnId) -> (Kind, Value) {
    let events = store.read_after(turn, -1, 10_000).await.unwrap();
    let last = events.last().expect("a turn has events");
    assert!(last.kind.is_terminal(), "{turn} ends in {}", last.kind);
    (last.kind, serde_json::from_str(&last.data).unwrap())
}

/// The word of the refusal, and its detail.
pub fn refusal<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> (String, String) {
    match answer {
        Err(StoreError::Refused { code, detail, .. }) => (code.to_string(), detail.unwrap_or_default()),
        other => panic!("not a refusal: {other:?}"),
    }
}

/// Waits for something to come about.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(there) = look().await {
                return there;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come about within {PATIENCE:?}"))
}
