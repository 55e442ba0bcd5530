//! The processes of one `dev`: a private Postgres and its replicas.
//!
//! Restarts what dies; dropping the cluster ends all of it. Replicas stop before Postgres, so that they can write
//! their last words.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::{
    home::{DevHome, DevState, PostgresState},
    replica::DevReplica,
};
use lastword_devkit::postgres::{Binaries, Options, Postgres, StopMode};
use lastword_devkit::signals::Signals;

/// Drain time of running turns after the first signal: short, since a person waits for the prompt.
const DRAIN: Duration = Duration::from_secs(3);
/// Time a replica may need beyond its drain.
const DRAIN_MARGIN: Duration = Duration::from_secs(3);
/// Time for Postgres to stop.
const POSTGRES_STOP_MAX: Duration = Duration::from_secs(20);
/// Time for the replicas to become ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Timeout of one request to a replica.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Poll interval of waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to run, and where.
pub(super) struct DevPlan {
    pub(super) dir: PathBuf,
    /// The first replica's port; the others follow.
    pub(super) port: u16,
    pub(super) replicas: u16,
    pub(super) postgres_bin: Option<PathBuf>,
    pub(super) is_durable: bool,
}

/// All processes. The fields are in the order in which they must end.
pub(super) struct DevCluster {
    replicas: Vec<DevReplica>,
    postgres: Postgres,
    home: DevHome,
    program: PathBuf,
    token: String,
    client_token: String,
    http: reqwest::Client,
}

impl DevCluster {
    /// Starts Postgres, migrates its tables and starts the replicas.
    pub(super) async fn start(plan: &DevPlan) -> anyhow::Result<DevCluster> {
        let home = DevHome::open(&plan.dir)?;
        let replicas = replicas(plan, &home)?;
        let (token, client_token) = (home.operator_token()?, home.client_token()?);
        home.write_console(&replicas[0].url(), &token)?;
        let options = Options {
            durable: plan.is_durable,
            log: Some(home.dir().join("postgres.log")),
            ..Options::new(home.dir().join("postgres"), Binaries::find(plan.postgres_bin.as_deref())?)
        };
        let postgres = Postgres::start(options)?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let http = reqwest::Client::builder().timeout(REQUEST_MAX).no_proxy().build()?;
        let mut cluster = DevCluster { replicas, postgres, home, program, token, client_token, http };
        cluster.migrate().await?;
        for n in 0..cluster.replicas.len() {
            let serve = cluster.command("serve");
            cluster.replicas[n].start(serve)?;
        }
        cluster.home.publish(&cluster.state())?;
        Ok(cluster)
    }

    /// Waits until every replica is ready.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_MAX;
        for n in 0..self.replicas.len() {
            while !self.is_ready(n).await {
                self.look()?;
                if Instant::now() > until {
                    let replica = &self.replicas[n];
                    bail!("replica {} is not ready; its log ends:\n{}", replica.name, replica.last_lines(20));
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Checks every process once and restarts what is due; reports restarts on stderr.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        let mut has_changed = false;
        if !self.postgres.is_running() {
            note!("Postgres died; starting it again (its log: {})", self.postgres.log().display());
            self.postgres.restart(StopMode::Immediate)?;
            note!("Postgres is back as process {}", self.postgres.pid().unwrap_or_default());
            has_changed = true;
        }
        for n in 0..self.replicas.len() {
            if let Some(status) = self.replicas[n].take_death() {
                announce_death(&self.replicas[n], status);
                has_changed = true;
            }
            if self.replicas[n].is_due() {
                let serve = self.command("serve");
                self.replicas[n].start(serve)?;
                let pid = self.replicas[n].pid().unwrap_or_default();
                note!("replica {} is back as process {pid}", self.replicas[n].name);
                has_changed = true;
            }
        }
        if has_changed { self.home.publish(&self.state()) } else { Ok(()) }
    }

    /// Creates or updates the agent `demo`: the path of its program may have changed.
    pub(super) async fn install_demo_agent(&self) -> anyhow::Result<()> {
        let url = format!("{}/v1/agents/demo", self.replicas[0].url());
        let agent = json!({"runtime": "process", "command": [self.program, "demo-agent"]});
        let answer = self.http.put(url).bearer_auth(&self.token).json(&agent).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "the agent `demo` was refused: {status} {}", answer.text().await?);
        Ok(())
    }

    /// Stops the replicas, then Postgres. A signal during the wait stops them at once.
    pub(super) async fn stop(&mut self, signals: &mut Signals) {
        for replica in &self.replicas {
            replica.send(Signal::SIGTERM);
        }
        let replicas = &mut self.replicas;
        let are_gone = || {
            replicas.retain_mut(|replica| replica.take_death().is_none() && replica.pid().is_some());
            replicas.is_empty()
        };
        let gently = wait(are_gone, DRAIN + DRAIN_MARGIN, signals).await;
        // Dropping a replica kills it.
        self.replicas.clear();
        self.postgres.begin_stop(if gently { StopMode::Fast } else { StopMode::Immediate });
        let postgres = &mut self.postgres;
        wait(|| !postgres.is_running(), POSTGRES_STOP_MAX, signals).await;
        if let Err(why) = self.postgres.stop(StopMode::Immediate) {
            note!("warning: {why:#}");
        }
        self.home.retract();
    }

    /// `lastword SUBCOMMAND` with this cluster's database.
    pub(super) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(subcommand)
            .env("DATABASE_URL", self.postgres.url())
            // These would point a replica at another database.
            .env_remove("LASTWORD_DATABASE_URL")
            .env_remove("LASTWORD_DATABASE_URL_FILE")
            .env_remove("LASTWORD_LISTENER_DATABASE_URL")
            .env_remove("LASTWORD_ADVERTISED_URL")
            .env("LASTWORD_DATA_DIR", self.home.dir().join("workspaces"))
            // Every user of this machine can reach the ports, so nothing is left open.
            .env("LASTWORD_OPERATOR_TOKENS", &self.token)
            .env("LASTWORD_CLIENT_TOKENS", &self.client_token)
            .env_remove("LASTWORD_OPERATOR_TOKENS_FILE")
            .env_remove("LASTWORD_CLIENT_TOKENS_FILE")
            .env("LASTWORD_DRAIN", format!("{}s", DRAIN.as_secs()))
            .env("LASTWORD_DEV", "1");
        command
    }

    pub(super) fn state(&self) -> DevState {
        let postgres = PostgresState {
            pid: self.postgres.pid(),
            data: self.postgres.data().to_owned(),
            log: self.postgres.log().to_owned(),
        };
        DevState {
            pid: std::process::id(),
            urls: self.replicas.iter().map(DevReplica::url).collect(),
            database_url: self.postgres.url(),
            postgres,
            replicas: self.replicas.iter().map(DevReplica::state).collect(),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// The address of Postgres, without its password.
    pub(super) fn postgres_address(&self) -> String {
        format!("127.0.0.1:{}", self.postgres.port())
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Sends replica `n` a signal.
    pub(super) fn send(&self, n: usize, which: Signal) {
        self.replicas[n].send(which);
    }

    async fn migrate(&self) -> anyhow::Result<()> {
        let mut migrate = tokio::process::Command::from(self.command("migrate"));
        let done = migrate.kill_on_drop(true).output().await.context("cannot run `lastword migrate`")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "`lastword migrate` failed ({}): {}", done.status, said.trim());
        Ok(())
    }

    async fn is_ready(&self, n: usize) -> bool {
        let asked = self.http.get(format!("{}/readyz", self.replicas[n].url())).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }
}

fn replicas(plan: &DevPlan, home: &DevHome) -> anyhow::Result<Vec<DevReplica>> {
    let before = home.last_state().map(|state| state.replicas).unwrap_or_default();
    (0..plan.replicas)
        .zip('A'..='Z')
        .map(|(n, name)| {
            let port = plan.port.checked_add(n).context("there is no port above 65535")?;
            let url = format!("http://127.0.0.1:{port}");
            let before = before.iter().find(|replica| replica.url == url);
            DevReplica::on(port, name, home.dir(), before)
        })
        .collect()
}

fn announce_death(replica: &DevReplica, status: ExitStatus) {
    let pause = replica.pause();
    note!("replica {} died ({status}); it is started again in {pause:?}", replica.name);
    if pause > Duration::from_secs(1) {
        note!("its log ends:\n{}", replica.last_lines(5));
    }
}

/// Waits until `is_done`. Returns false on a timeout or a signal.
async fn wait(mut is_done: impl FnMut() -> bool, at_most: Duration, signals: &mut Signals) -> bool {
    let until = Instant::now() + at_most;
    while !is_done() {
        if Instant::now() > until {
            return false;
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = signals.asked() => return false,
        }
    }
    true
}
