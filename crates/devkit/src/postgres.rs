//! A private Postgres: started by this process, reachable by it alone, and stopped with it.
//!
//! Owns one data directory and the server process over it. It starts `postgres` itself rather than through `pg_ctl`, so
//! that it holds the process: a server that dies is noticed, and no server is left behind by a drop, a panic or a `kill
//! -9` of this process. Listens on loopback only. Refuses to run the server as root; [`owner`] chooses another user.
//!
//! Every function here blocks, usually for less than a second.

mod binaries;
mod cluster;
#[cfg(feature = "download-postgres")]
mod download;
mod options;
mod owner;
mod password;
mod stray;

use std::{
    fmt,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use rand::Rng as _;

use self::owner::ServerUser;
pub use self::{binaries::Binaries, options::Options};
use crate::child;

/// How long a start may take; a crash recovery of a large database is the slow case.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a fast stop may take before it becomes an immediate one, and that one a kill.
const STOP_MAX: Duration = Duration::from_secs(20);
/// How long a start that failed for a passing reason waits before the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Where ports are taken from: below the range from which systems take ports for outgoing
/// connections, so that nobody is on ours when the server comes back from a restart.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A running private Postgres. Dropping it stops the server.
pub struct Postgres {
    options: Options,
    owner: Option<ServerUser>,
    data: PathBuf,
    password: Option<String>,
    log: PathBuf,
    port: Option<u16>,
    child: Option<Child>,
    is_scratch: bool,
}

/// How to stop the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends the sessions, writes a checkpoint, leaves.
    Fast,
    /// Leaves at once, as in a crash; the next start recovers.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        }
    }
}

impl Postgres {
    /// Starts a server and returns when it takes connections. A server left over the same data
    /// directory by an earlier life is stopped first.
    ///
    /// # Errors
    /// The directory cannot be used, `initdb` fails, or the server does not come up; the message
    /// carries the end of its log.
    pub fn start(options: Options) -> anyhow::Result<Postgres> {
        let owner = ServerUser::of_a_server(&options.data)?;
        let data = cluster::prepare(&options, owner.as_ref())?;
        stray::stop(&data)?;
        let log = options.log.clone().unwrap_or_else(|| data.join("server.log"));
        let empty = File::options().write(true).create(true).truncate(true).mode(0o600).open(&log);
        empty.with_context(|| format!("cannot write {}", log.display()))?;
        let port = options.port;
        let password = cluster::password(&data)?;
        let mut postgres =
            Postgres { options, owner, data, password, log, port, child: None, is_scratch: false };
        postgres.launch()?;
        Ok(postgres)
    }

    /// Starts a throw-away server for a test: quick to start, not durable, its directory removed on
    /// drop. The first start on a machine also fills a cache with an initialised directory.
    ///
    /// # Errors
    /// As [`Postgres::start`], or no Postgres was found on this machine.
    pub fn for_test() -> anyhow::Result<Postgres> {
        let binaries = Binaries::find(None)?;
        let data = cluster::scratch(&binaries)?;
        let options = Options { durable: false, ..Options::new(data.clone(), binaries) };
        let started = Postgres::start(options);
        match started {
            Ok(mut postgres) => {
                postgres.is_scratch = true;
                Ok(postgres)
            }
            Err(why) => {
                let _ = fs::remove_dir_all(data);
                Err(why)
            }
        }
    }

    /// Where to connect, as `postgres://postgres:PASSWORD@127.0.0.1:PORT/postgres`. A secret.
    pub fn url(&self) -> String {
        let password = self.password.as_ref().map_or_else(String::new, |password| format!(":{password}"));
        format!("postgres://postgres{password}@127.0.0.1:{}/postgres", self.port())
    }

    /// The port of 127.0.0.1 it listens on; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or_default()
    }

    /// The process id of the server's first process; `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The data directory in use. It differs from the wanted one where that could not be reached by
    /// the user the server runs as.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where the server's log goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether the server process is there; also notices that it has died.
    pub fn is_running(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && !matches!(child.try_wait(), Ok(None))
        {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Stops the server and waits until it is gone. Nothing to do when it is stopped already.
    ///
    /// # Errors
    /// The process could not be signalled or waited for.
    pub fn stop(&mut self, mode: StopMode) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        for signal in [mode.signal(), Signal::SIGQUIT, Signal::SIGKILL] {
            child::send(&child, signal).context("cannot signal the private Postgres")?;
            if child::wait(STOP_MAX, || !matches!(child.try_wait(), Ok(None))) {
                return Ok(());
            }
        }
        bail!("the private Postgres (process {}) survived a kill", child.id())
    }

    /// Tells the server to stop and does not wait; [`Postgres::is_running`] says when it is gone.
    pub fn begin_stop(&self, mode: StopMode) {
        if let Some(child) = &self.child {
            let _ = child::send(child, mode.signal());
        }
    }

    /// Stops the server, if it runs, and starts it again on the same port.
    ///
    /// # Errors
    /// As [`Postgres::stop`] and [`Postgres::start`].
    pub fn restart(&mut self, mode: StopMode) -> anyhow::Result<()> {
        self.stop(mode)?;
        self.launch()
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_MAX;
        let mut tries_left = 50;
        loop {
            let port = match self.port {
                Some(port) => port,
                None => free_port()?,
            };
            let log_length = fs::metadata(&self.log).map_or(0, |log| log.len());
            let child = self.spawn(port)?;
            self.child = Some(child);
            if self.wait_until_ready(until)? {
                self.port = Some(port);
                return Ok(());
            }
            let said = tail(&self.log, log_length);
            tries_left -= 1;
            if tries_left == 0 || Instant::now() > until || !may_pass(&said) {
                bail!("the private Postgres did not start; its log ({}) says:\n{said}", self.log.display());
            }
            child::wait(RETRY_PAUSE, || false);
        }
    }

    fn spawn(&self, port: u16) -> anyhow::Result<Child> {
        let log = File::options().append(true).open(&self.log)?;
        let mut command = owner::command(&self.options.binaries.postgres(), self.owner.as_ref());
        command.current_dir(&self.data).arg("-D").arg(&self.data);
        for (name, value) in settings(&self.options, port) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // An interrupt asks the server for a fast stop.
        child::spawn(command, Signal::SIGINT)
            .with_context(|| format!("cannot run {}", self.options.binaries.postgres().display()))
    }

    /// Waits until the server says in its pid file that it is ready: the sign `pg_ctl` goes by too.
    /// Reading it, unlike connecting to the port, cannot mistake another server for ours.
    fn wait_until_ready(&mut self, until: Instant) -> anyhow::Result<bool> {
        let mut is_ready = false;
        let left = until.saturating_duration_since(Instant::now());
        let is_decided = child::wait(left, || {
            let pid = self.pid();
            is_ready = pid.is_some() && stray::ready_pid(&self.data) == pid;
            is_ready || !self.is_running()
        });
        if !is_decided {
            self.stop(StopMode::Immediate)?;
        }
        Ok(is_ready)
    }
}

/// By hand: the password stays out of it.
impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Postgres");
        shown.field("data", &self.data).field("port", &self.port).field("pid", &self.pid());
        shown.finish_non_exhaustive()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mode = if self.is_scratch { StopMode::Immediate } else { StopMode::Fast };
        if let Err(why) = self.stop(mode) {
            tracing::error!(%why, "a private Postgres may still run");
        }
        if self.is_scratch {
            let _ = fs::remove_dir_all(&self.data);
        }
    }
}

fn settings(options: &Options, port: u16) -> Vec<(String, String)> {
    let mut settings = vec![
        ("port", port.to_string()),
        ("listen_addresses", "127.0.0.1".to_owned()),
        // Relative to the data directory: private, and never too long for a socket's address.
        ("unix_socket_directories", ".".to_owned()),
        ("max_connections", "200".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        // `may_pass` reads these messages.
        ("lc_messages", "C".to_owned()),
        // For people with psql: statements name their schema.
        ("search_path", "lastword, public".to_owned()),
    ];
    if !options.durable {
        for name in ["fsync", "full_page_writes", "synchronous_commit"] {
            settings.push((name, "off".to_owned()));
        }
    }
    let ours = settings.into_iter().map(|(name, value)| (name.to_owned(), value));
    ours.chain(options.settings.iter().cloned()).collect()
}

fn free_port() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    for _ in 0..100 {
        let port = random.random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {} on 127.0.0.1", PORTS.start, PORTS.end)
}

/// Whether what stopped the server from starting may go away: another process took the port, or the
/// last processes of the server before it have not left yet.
fn may_pass(said: &str) -> bool {
    ["could not bind", "could not create any TCP/IP sockets", "pre-existing shared memory", "already exists"]
        .iter()
        .any(|passing| said.contains(passing))
}

fn tail(log: &Path, from: u64) -> String {
    let read = || {
        let mut log = File::open(log)?;
        log.seek(SeekFrom::Start(from))?;
        let mut said = Vec::new();
        log.take(64 * 1024).read_to_end(&mut said)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&said).into_owned())
    };
    read().unwrap_or_else(|why| format!("(cannot be read: {why})"))
}
