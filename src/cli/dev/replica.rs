//! One replica: a process of `lastword serve` that is restarted when it dies.
//!
//! Owns the process, its log, and the pause before a restart, which grows if the process dies soon after its
//! start.

use std::{
    fs::{self, File},
    io::{self, Seek as _, SeekFrom},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::home::{ReplicaState, private};
use lastword_devkit::child;

/// A process that dies younger than this is likely to die again.
const YOUNG: Duration = Duration::from_secs(5);
/// The pause before a restart: at first, and at most.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long to wait for a port.
const PORT_MAX: Duration = Duration::from_secs(2);
/// A log longer than this is truncated at the next start of `dev`.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long a replica that outlived its `dev` may take to leave.
const STRAY_MAX: Duration = Duration::from_secs(6);

/// A replica, running or about to be started.
pub(super) struct DevReplica {
    pub(super) name: char,
    port: u16,
    log: PathBuf,
    child: Option<Child>,
    born: Instant,
    pause: Duration,
}

impl DevReplica {
    /// A replica for [`DevReplica::start`] to start. Refuses a port that is in use.
    pub(super) fn on(
        port: u16,
        name: char,
        dir: &Path,
        before: Option<&ReplicaState>,
    ) -> anyhow::Result<DevReplica> {
        if let Some(stray) = before.and_then(|before| before.pid) {
            evict(stray, port)?;
        }
        // A process killed a moment ago may still hold its port while its threads end.
        let mut bound = TcpListener::bind(("127.0.0.1", port));
        child::wait(PORT_MAX, || {
            if bound.is_err() {
                bound = TcpListener::bind(("127.0.0.1", port));
            }
            bound.is_ok()
        });
        bound.with_context(|| format!("port {port} on 127.0.0.1 is taken; choose another with --port"))?;
        let log = dir.join(format!("replica-{}.log", name.to_ascii_lowercase()));
        if fs::metadata(&log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::remove_file(&log)?;
        }
        Ok(DevReplica { name, port, log, child: None, born: Instant::now(), pause: PAUSE })
    }

    /// Starts the process. `serve`: the `lastword serve` command without its address.
    pub(super) fn start(&mut self, mut serve: Command) -> anyhow::Result<()> {
        let mut log = private(&self.log)?;
        log.seek(SeekFrom::End(0))?;
        serve.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = child::spawn(serve, Signal::SIGTERM)
            .with_context(|| format!("cannot start replica {}", self.name))?;
        self.child = Some(child);
        self.born = Instant::now();
        Ok(())
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn state(&self) -> ReplicaState {
        ReplicaState { name: self.name, url: self.url(), pid: self.pid(), log: self.log.clone() }
    }

    /// The exit status of a dead process, returned once.
    pub(super) fn take_death(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        self.pause = if self.born.elapsed() < YOUNG { (self.pause * 2).min(PAUSE_MAX) } else { PAUSE };
        self.born = Instant::now();
        Some(status)
    }

    /// Whether the pause after its death is over.
    pub(super) fn is_due(&self) -> bool {
        self.child.is_none() && self.born.elapsed() >= self.pause
    }

    /// The pause before the next restart.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Sends a signal, if the process runs.
    pub(super) fn send(&self, which: Signal) {
        if let Some(child) = &self.child {
            let _ = child::send(child, which);
        }
    }

    /// The end of its log, to find out why it does not start.
    pub(super) fn last_lines(&self, count: usize) -> String {
        let read = || {
            let mut log = File::open(&self.log)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(8 * 1024)))?;
            let mut text = Vec::new();
            io::Read::read_to_end(&mut log, &mut text)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

impl Drop for DevReplica {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a replica left over by a killed `dev` (it was told to leave), and kills it after [`STRAY_MAX`].
/// Spares another program that has reused its process id.
fn evict(pid: u32, port: u16) -> anyhow::Result<()> {
    let is_gone = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        !(line.contains("serve") && line.contains(&format!("127.0.0.1:{port}")))
    };
    if child::wait(STRAY_MAX, is_gone) {
        return Ok(());
    }
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    ensure!(
        child::wait(STRAY_MAX, is_gone),
        "process {pid}, left over from an earlier run, cannot be killed"
    );
    Ok(())
}
