//! A cluster of real replicas over a private Postgres, for the suites that need one.
//!
//! Owns the processes and their end. The drop of a `Cluster` checks the promise and fails its test otherwise: `lastword
//! verify` is clean, every replica that should live does, no log has a panic, and no started process is left. Refuses
//! to guess: every list of events that a helper returns has been checked on the way.

#![allow(dead_code, reason = "each suite uses a part of this")]

mod cases;
mod client;
mod end;
mod events;
pub mod figures;
mod host;
mod outlet;
pub mod replica;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lastword_devkit::postgres::Postgres;
use nix::sys::signal::Signal;
use tokio::time::Instant;

#[allow(unused_imports, reason = "each suite uses a part of this")]
pub use self::{
    cases::{Case, all},
    client::{Turn, WorkerSeen, lay_over},
    end::leftovers_of,
    events::{Event, EventStream, Next, check_log, kinds, said},
    host::{Host, HostPlan, WORKERS},
    outlet::{Outlet, OutletCase, all_of},
};
use self::{outlet::AgentHost, replica::Replica};

/// How long something may take that must happen at all. Only a failure waits that long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The token that opens every route.
pub const OPERATOR: &str = "operator-token-of-a-test";
/// How often something that is awaited is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many replicas.
    pub replicas: usize,
    /// More for their environment; it overrides ours.
    pub env: Vec<(String, String)>,
    /// Turns that one replica runs at once.
    pub turns_max: u32,
    /// Processes of workers that a replica, or a host of workers, has at once; as many as it wants where absent.
    pub workers_max: Option<u32>,
    /// Where the words of stdio workers go.
    pub outlet: Outlet,
    /// How long running turns get to end after a SIGTERM.
    pub drain: Duration,
    /// Who the replicas run as, where not as this process; for root alone.
    pub user: Option<u32>,
    /// Descriptors that a replica is started with, and those that the system permits it; as this process has them
    /// where absent.
    pub open_files: Option<(u64, u64)>,
}

impl Default for Plan {
    fn default() -> Self {
        let drain = Duration::from_secs(2);
        Plan {
            replicas: 2,
            env: Vec::new(),
            turns_max: 64,
            workers_max: None,
            outlet: Outlet::default(),
            drain,
            user: None,
            open_files: None,
        }
    }
}

/// Replicas over one Postgres.
pub struct Cluster {
    replicas: Mutex<Vec<Replica>>,
    /// Of the agents whose workers are hosted over HTTP.
    hosts: Mutex<Vec<AgentHost>>,
    postgres: Mutex<Postgres>,
    home: tempfile::TempDir,
    plan: Plan,
    http: reqwest::Client,
}

impl Cluster {
    /// `replicas` of them with nothing special.
    pub async fn start(replicas: usize) -> Cluster {
        Cluster::with(Plan { replicas, ..Plan::default() }).await
    }

    /// Starts Postgres, makes the tables, starts the replicas, and returns when all are ready.
    pub async fn with(plan: Plan) -> Cluster {
        let postgres = Postgres::for_test().unwrap();
        let home = tempfile::Builder::new().prefix("lastword-cluster-").tempdir().unwrap();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        if plan.user.is_some() {
            std::os::unix::fs::chown(home.path(), plan.user, plan.user).unwrap();
        }
        let count = plan.replicas;
        let (replicas, hosts, postgres) = (Mutex::default(), Mutex::default(), Mutex::new(postgres));
        let cluster = Cluster { replicas, hosts, postgres, home, plan, http };
        let migrated = cluster.command("migrate").output().unwrap();
        assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        for _ in 0..count {
            let new = cluster.born();
            lock(&cluster.replicas).push(new);
        }
        for i in 0..count {
            cluster.ready(i).await;
        }
        cluster
    }

    /// Starts one more, waits until it is ready, and returns its index.
    pub async fn spawn_replica(&self) -> usize {
        self.spawn_replica_with(&[]).await
    }

    /// The same, with more for its environment, unless another process takes its port first.
    pub async fn spawn_replica_with(&self, env: &[(&str, &str)]) -> usize {
        let new = self.born_with(env);
        let i = {
            let mut replicas = lock(&self.replicas);
            replicas.push(new);
            replicas.len() - 1
        };
        self.ready(i).await;
        i
    }

    /// Where replica `i` listens, as `http://127.0.0.1:PORT`.
    pub fn url(&self, i: usize) -> String {
        lock(&self.replicas)[i].url()
    }

    /// The process id of replica `i`, also after its end.
    pub fn pid(&self, i: usize) -> i32 {
        lock(&self.replicas)[i].pid()
    }

    /// The log of replica `i` so far.
    pub fn log(&self, i: usize) -> String {
        lock(&self.replicas)[i].log()
    }

    /// How many replicas were ever started.
    pub fn replicas(&self) -> usize {
        lock(&self.replicas).len()
    }

    /// Indices of the replicas that should answer.
    pub fn living(&self) -> Vec<usize> {
        let replicas = lock(&self.replicas);
        (0..replicas.len()).filter(|&i| replicas[i].should_answer()).collect()
    }

    /// SIGKILLs replica `i` and waits for its end.
    pub fn kill(&self, i: usize) {
        lock(&self.replicas)[i].kill();
    }

    /// Stops replica `i` in its tracks.
    pub fn freeze(&self, i: usize) {
        lock(&self.replicas)[i].freeze(true);
    }

    /// Lets a frozen replica go on.
    pub fn thaw(&self, i: usize) {
        lock(&self.replicas)[i].freeze(false);
    }

    /// Asks replica `i` to drain and leave, and does not wait.
    pub fn terminate(&self, i: usize) {
        lock(&self.replicas)[i].leave(Signal::SIGTERM);
    }

    /// Waits until replica `i`, which was told to leave, is gone.
    pub async fn wait_exit(&self, i: usize) -> ExitStatus {
        eventually("the replica leaves", async || lock(&self.replicas)[i].exit()).await
    }

    /// The private Postgres: to stop, to restart, to ask for its process id.
    pub fn postgres(&self) -> MutexGuard<'_, Postgres> {
        lock(&self.postgres)
    }

    /// Where the replicas keep their workspaces.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The workspace of a conversation's workers.
    pub fn workspace(&self, conversation: &str) -> PathBuf {
        self.workspaces().join(conversation)
    }

    /// Fails unless every invariant holds over the whole database.
    pub fn verify(&self) {
        let done = self.command("verify").output().unwrap();
        let (said, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "verify ({}):\n{said}{why}", done.status);
    }

    /// `lastword SUBCOMMAND` with what every process of this cluster is told.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = match self.plan.open_files {
            Some((soft, hard)) if subcommand == "serve" => {
                let mut shell = Command::new("sh");
                let limits = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
                shell.args(["-c", &limits]).arg(program());
                shell
            }
            _ => Command::new(program()),
        };
        // The doorbell is the only thing that the run of a test may choose for it.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let is_ours = text.starts_with("LASTWORD_") || text.starts_with("OTEL_");
            if is_ours && text != "LASTWORD_DOORBELL" {
                command.env_remove(name);
            }
        }
        command
            .arg(subcommand)
            // Also where leftovers are looked for.
            .current_dir(self.home.path())
            .env("DATABASE_URL", self.postgres().url())
            .env("LASTWORD_DATA_DIR", self.data_dir())
            .env("LASTWORD_OPERATOR_TOKENS", OPERATOR)
            .env("LASTWORD_DEV", "1")
            .env("LASTWORD_DRAIN", format!("{}ms", self.plan.drain.as_millis()))
            .env("LASTWORD_TURNS_MAX", self.plan.turns_max.to_string())
            .env("RUST_BACKTRACE", "1");
        if self.plan.outlet == Outlet::Http {
            command.env("LASTWORD_WORKER_TOKENS", WORKERS);
        }
        if let Some(count) = self.plan.workers_max {
            command.env("LASTWORD_WORKERS_MAX", count.to_string());
        }
        command.envs(self.plan.env.iter().map(|(name, value)| (name, value)));
        if let Some(user) = self.plan.user {
            command.uid(user).gid(user);
        }
        command
    }

    fn born(&self) -> Replica {
        self.born_with(&[])
    }

    fn born_with(&self, env: &[(&str, &str)]) -> Replica {
        let n = self.replicas();
        let mut serve = self.command("serve");
        serve.envs(env.iter().copied());
        Replica::start(serve, self.home.path().join(format!("replica-{n}.log")))
    }

    /// Waits until replica `i` is ready; gives it another port where somebody took the one it had.
    async fn ready(&self, i: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = self.http.get(format!("{}/readyz", self.url(i))).timeout(PATIENCE).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let has_died = lock(&self.replicas)[i].has_died();
            if has_died && self.log(i).contains("cannot listen") {
                let again = self.born();
                lock(&self.replicas)[i] = again;
            } else {
                assert!(!has_died && Instant::now() < until, "replica {i} is not ready:\n{}", self.log(i));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The program under test; `LASTWORD_CHAOS_PROGRAM` names another, such as a mutant.
pub fn program() -> &'static Path {
    static OTHER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("LASTWORD_CHAOS_PROGRAM").map(PathBuf::from));
    OTHER.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_lastword")))
}

/// Looks until there is something to see, and fails after a minute.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

/// Looks until there is something to see, and fails after `at_most`.
pub async fn within<T>(at_most: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + at_most;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < until, "not within {at_most:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The number that a process of a worker has out here, which in there goes by `inner`.
pub fn outside(worker: i32, inner: i32) -> i32 {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = namespace(worker).expect("the worker lives");
    if Some(&inside) == namespace(i32::try_from(std::process::id()).unwrap()).as_ref() {
        return inner;
    }
    let is_it = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let last = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
        last == Some(inner) && namespace(*pid).as_ref() == Some(&inside)
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.find(is_it).unwrap_or_else(|| panic!("{inner} of {worker} is not there"))
}

/// The processes that this one started and that are there.
pub fn children_of(parent: i32) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent_of =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent_of == Some(parent)
    })
    .collect()
}

/// Sends a signal to a process.
pub fn signal(pid: i32, which: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), which).unwrap();
}

/// What a task that panicked said.
pub fn panic_text(why: tokio::task::JoinError) -> String {
    let Ok(panic) = why.try_into_panic() else { return "cancelled".to_owned() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// One case that panicked must not hide what the others have to tell.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
