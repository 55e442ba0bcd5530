//! The fleet: the replicas of one run, in slots, over one Postgres.
//!
//! Owns the processes. A slot outlives its replicas: a killed replica is restarted in its slot, with another port and
//! process id. Every fault is recorded in the history, so that the checker knows which failures the drill has caused.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastword_devkit::postgres::{Postgres, StopMode};
use nix::sys::signal::Signal;
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::{
    history::{Fact, History, Outcome},
    hosts::Hosts,
    plan::{Ground, Plan},
    proxy::Proxy,
    support::{self, OPERATOR, replica::Replica},
};

/// How long a replica may take to be ready, and a process to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The replicas of one run.
pub struct Fleet {
    slots: Vec<Mutex<Replica>>,
    hosts: OnceLock<Hosts>,
    ground: Mutex<Ground>,
    home: tempfile::TempDir,
    plan: Mutex<Plan>,
    /// Slots that a load balancer would send nobody to.
    out: Mutex<HashSet<usize>>,
    born: AtomicU64,
    faults: AtomicU64,
    http: reqwest::Client,
    /// Where everything is noted.
    pub history: Arc<History>,
}

impl Fleet {
    /// Starts a private Postgres whose commits are kept through its crashes, and the replicas.
    pub async fn start(plan: Plan, history: &Arc<History>) -> Arc<Fleet> {
        let postgres = tokio::task::block_in_place(Postgres::for_test).unwrap();
        Fleet::over(Ground::Own(Box::new(postgres)), plan, history).await
    }

    /// Starts the replicas over this database.
    pub async fn over(ground: Ground, plan: Plan, history: &Arc<History>) -> Arc<Fleet> {
        let home = tempfile::Builder::new().prefix("lastword-chaos-").tempdir().unwrap();
        let count = plan.slots;
        let mut fleet = Fleet {
            slots: Vec::new(),
            hosts: OnceLock::new(),
            ground: Mutex::new(ground),
            home,
            plan: Mutex::new(plan),
            out: Mutex::default(),
            born: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap(),
            history: history.clone(),
        };
        fleet.prepare().await;
        let migrated = fleet.command(0, "migrate").output().unwrap();
        assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        for slot in 0..count {
            fleet.slots.push(Mutex::new(fleet.born(slot)));
        }
        let fleet = Arc::new(fleet);
        for slot in 0..count {
            fleet.ready(slot, PATIENCE).await;
        }
        // Kept for less than the usual ten minutes: long drills make thousands of conversations.
        let demo =
            json!({"runtime": "process", "command": [support::program(), "demo-agent"], "idle_ttl": "30s"});
        fleet.put_agent("demo", demo).await;
        fleet
    }

    /// From now on the demo agent's turns run on so many hosts, which call through these doors.
    pub async fn move_to_hosts(&self, doors: Vec<Proxy>, count: usize) {
        let hosts = Hosts::start(doors, count, self.home.path(), self.receipts_path());
        assert!(self.hosts.set(hosts).is_ok(), "they have moved there before");
        for slot in 0..self.size() {
            self.lead_door_to(slot);
        }
        self.put_agent("demo", json!({"runtime": "remote"})).await;
    }

    /// The hosts that the demo agent's turns run on.
    pub fn hosts(&self) -> &Hosts {
        self.hosts.get().expect("hosts, of a fleet that has moved there")
    }

    fn lead_door_to(&self, slot: usize) {
        if let Some(hosts) = self.hosts.get() {
            hosts.door(slot).retarget(self.url(slot).trim_start_matches("http://").parse().unwrap());
        }
    }

    /// How many slots.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// A slot that a client may be sent to.
    pub fn draw(&self, rng: &mut StdRng) -> usize {
        let out = lock(&self.out);
        let open: Vec<usize> = (0..self.size()).filter(|slot| !out.contains(slot)).collect();
        open[rng.random_range(0..open.len())]
    }

    /// From now on nobody new is sent to this slot.
    pub fn take_out(&self, slot: usize) {
        lock(&self.out).insert(slot);
    }

    /// It is one of those again.
    pub fn put_back(&self, slot: usize) {
        lock(&self.out).remove(&slot);
    }

    /// Where a slot's replica listens, or did.
    pub fn url(&self, slot: usize) -> String {
        lock(&self.slots[slot]).url()
    }

    /// The process id of a slot's replica, also after its end.
    pub fn pid(&self, slot: usize) -> i32 {
        lock(&self.slots[slot]).pid()
    }

    /// The log of a slot's present replica.
    pub fn log(&self, slot: usize) -> String {
        lock(&self.slots[slot]).log()
    }

    /// Notes that something was broken; the number that heals it.
    pub fn broke(&self, name: &str, slot: Option<usize>, pid: Option<i32>, turns: Vec<String>) -> u64 {
        let id = self.faults.fetch_add(1, Ordering::Relaxed);
        self.history.note(Fact::Fault { f: Outcome::Invoke, id, name: name.to_owned(), slot, pid, turns });
        id
    }

    /// Notes that it was healed.
    pub fn healed(&self, id: u64, name: &str) {
        let (slot, pid, turns) = (None, None, Vec::new());
        self.history.note(Fact::Fault { f: Outcome::Ok, id, name: name.to_owned(), slot, pid, turns });
    }

    /// SIGKILLs a slot's replica, which takes these turns along.
    pub fn kill(&self, slot: usize, turns: Vec<String>) {
        let mut replica = lock(&self.slots[slot]);
        self.broke("kill_replica", Some(slot), Some(replica.pid()), turns);
        replica.kill();
    }

    /// Takes note that a slot's replica was killed by somebody else.
    pub fn bury(&self, slot: usize) {
        lock(&self.slots[slot]).kill();
    }

    /// Stops a slot's replica in its tracks; the number that `thaw` takes.
    pub fn freeze(&self, slot: usize, turns: Vec<String>) -> u64 {
        let mut replica = lock(&self.slots[slot]);
        let id = self.broke("freeze_replica", Some(slot), Some(replica.pid()), turns);
        replica.freeze(true);
        id
    }

    /// Lets a frozen replica go on.
    pub fn thaw(&self, slot: usize, id: u64) {
        lock(&self.slots[slot]).freeze(false);
        self.healed(id, "freeze_replica");
    }

    /// Asks a slot's replica to drain and leave, and waits until it is gone.
    pub async fn drain(&self, slot: usize) {
        let pid = self.pid(slot);
        let id = self.broke("drain_replica", Some(slot), Some(pid), Vec::new());
        lock(&self.slots[slot]).leave(Signal::SIGTERM);
        let until = Instant::now() + PATIENCE;
        while lock(&self.slots[slot]).exit().is_none() {
            assert!(Instant::now() < until, "replica {pid} does not leave:\n{}", self.log(slot));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.healed(id, "drain_replica");
    }

    /// Starts a new replica in a slot whose last one is gone, and waits until it is ready.
    pub async fn revive(&self, slot: usize) {
        let new = self.born(slot);
        *lock(&self.slots[slot]) = new;
        self.ready(slot, PATIENCE).await;
        self.lead_door_to(slot);
    }

    /// Another program for a slot's next replicas.
    pub fn set_program(&self, slot: usize, program: PathBuf) {
        let mut plan = lock(&self.plan);
        let slots = plan.slots;
        plan.programs.resize(slots, support::program().to_owned());
        plan.programs[slot] = program;
    }

    /// Waits until a slot says that it is ready; how long that took.
    pub async fn ready(&self, slot: usize, at_most: Duration) -> Duration {
        let began = Instant::now();
        while !self.is_ready(slot).await {
            let has_died = lock(&self.slots[slot]).has_died();
            if has_died && self.log(slot).contains("cannot listen") {
                let again = self.born(slot);
                *lock(&self.slots[slot]) = again;
            } else {
                let is_late = began.elapsed() > at_most;
                assert!(!has_died && !is_late, "slot {slot} is not ready:\n{}", self.log(slot));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        began.elapsed()
    }

    /// Whether a slot says now that it is ready.
    pub async fn is_ready(&self, slot: usize) -> bool {
        let asked = self.http.get(format!("{}/readyz", self.url(slot))).timeout(Duration::from_secs(2));
        asked.send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// A slot's metrics.
    pub async fn metrics(&self, slot: usize) -> String {
        let asked = self.http.get(format!("{}/metrics", self.url(slot))).bearer_auth(OPERATOR);
        asked.timeout(PATIENCE).send().await.unwrap().text().await.unwrap()
    }

    /// Puts an agent, on any replica that takes it. Its workers note what they receive.
    pub async fn put_agent(&self, name: &str, mut spec: Value) {
        spec["env"] = json!({"DEMO_RECEIPTS": self.receipts_path()});
        let url = format!("{}/v1/agents/{name}", self.url(0));
        let put = self.http.put(url).bearer_auth(OPERATOR).json(&spec).timeout(PATIENCE);
        let answer = put.send().await.unwrap();
        assert!(answer.status().is_success(), "agent {name}: {}", answer.text().await.unwrap());
    }

    /// Where workers note what they receive.
    pub fn receipts_path(&self) -> PathBuf {
        self.home.path().join("receipts")
    }

    /// The turns that workers have received, as often as they have.
    pub fn receipts(&self) -> Vec<String> {
        let noted = std::fs::read_to_string(self.receipts_path()).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// A connection to the database that no fault touches.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.database_url()).await.unwrap()
    }

    /// The database itself.
    pub fn database_url(&self) -> String {
        match &*lock(&self.ground) {
            Ground::Own(postgres) => postgres.url(),
            Ground::Lent(url) => url.clone(),
        }
    }

    /// The database moved.
    pub fn set_database_url(&self, url: String) {
        *lock(&self.ground) = Ground::Lent(url);
    }

    /// Does something with the fleet's own server.
    pub fn with_postgres<T>(&self, act: impl FnOnce(&mut Postgres) -> T) -> T {
        match &mut *lock(&self.ground) {
            Ground::Own(postgres) => tokio::task::block_in_place(|| act(postgres)),
            Ground::Lent(_) => panic!("this fleet's database is not its own"),
        }
    }

    /// `lastword verify` over the whole database; what it found wrong.
    pub fn verify(&self) -> Result<(), String> {
        let done = self.command(0, "verify").env("DATABASE_URL", self.database_url()).output().unwrap();
        let said =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        done.status.success().then_some(()).ok_or(said)
    }

    /// Panics in any log of a replica that was ever started, a line each.
    pub fn panics(&self) -> Vec<String> {
        let mut found = Vec::new();
        for n in 0..self.born.load(Ordering::Relaxed) {
            let log = std::fs::read(self.log_path(n)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            found.extend(log.lines().filter(|line| line.contains("panicked")).map(str::to_owned));
        }
        found
    }

    /// Copies every replica's log into a directory beside the history.
    pub fn keep_logs(&self, dir: &Path) -> io::Result<()> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)?;
        for n in 0..self.born.load(Ordering::Relaxed) {
            std::fs::copy(self.log_path(n), dir.join(format!("replica-{n}.log")))?;
        }
        Ok(())
    }

    /// Ends everything; processes that were left behind, a line each.
    pub fn end(&self) -> Vec<String> {
        self.hosts.get().inspect(|hosts| hosts.end());
        for slot in &self.slots {
            let mut replica = lock(slot);
            if replica.exit().is_none() {
                replica.kill();
            }
        }
        if let Ground::Own(postgres) = &mut *lock(&self.ground) {
            postgres.stop(StopMode::Immediate).unwrap();
        }
        support::leftovers_of(self.home.path())
    }

    fn born(&self, slot: usize) -> Replica {
        let n = self.born.fetch_add(1, Ordering::Relaxed);
        Replica::start(self.command(slot, "serve"), self.log_path(n))
    }

    fn log_path(&self, n: u64) -> PathBuf {
        self.home.path().join(format!("replica-{n}.log"))
    }

    fn command(&self, slot: usize, subcommand: &str) -> Command {
        let plan = lock(&self.plan).clone();
        let database = plan.database_urls.get(slot).cloned().unwrap_or_else(|| self.database_url());
        let program = plan.programs.get(slot).cloned().unwrap_or_else(|| support::program().to_owned());
        let mut command = match plan.open_files {
            Some(most) if subcommand == "serve" => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program);
                shell
            }
            _ => Command::new(program),
        };
        for (name, _) in std::env::vars_os() {
            if ["LASTWORD_", "OTEL_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
                command.env_remove(name);
            }
        }
        command
            .arg(subcommand)
            // Also where leftovers are looked for.
            .current_dir(self.home.path())
            .env(
                "DATABASE_URL",
                match plan.search_path {
                    Some(path) => format!("{database}?options=-csearch_path%3D{path}"),
                    None => database,
                },
            )
            .env("LASTWORD_DATA_DIR", self.home.path().join("data"))
            .env("LASTWORD_OPERATOR_TOKENS", OPERATOR)
            .env("LASTWORD_DEV", "1")
            .env("LASTWORD_KEEP_ALIVE", "3s")
            .env("LASTWORD_DRAIN", format!("{}ms", plan.drain.as_millis()))
            .env("LASTWORD_TURNS_MAX", plan.turns_max.to_string())
            .env("RUST_BACKTRACE", "1")
            .envs(plan.env.iter().map(|(name, value)| (name, value)))
            .envs(plan.slot_env.iter().filter(|(of, ..)| *of == slot).map(|(_, name, value)| (name, value)));
        command
    }

    /// Throw-away servers do not promise that a crash keeps what was committed. The role's setting
    /// counts for every session that comes after.
    async fn prepare(&self) {
        let mut admin = self.admin().await;
        let keep = "alter role postgres set synchronous_commit = on";
        let prelude = lock(&self.plan).prelude.clone();
        for statement in std::iter::once(keep).chain(prelude) {
            sqlx::query(statement).execute(&mut admin).await.unwrap();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
