//! One replica of a measurement: a process of `lastword serve`, which is not restarted.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{client::Client, machine::resident_bytes};
use lastword_devkit::child;

/// Where ports are taken from: below those that systems take for outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..20_000;
const READY_MAX: Duration = Duration::from_secs(60);
/// How often it is asked whether it is ready: a start is measured by this.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long it may take to leave.
const LEAVE_MAX: Duration = Duration::from_secs(15);

/// A replica that runs until this is dropped.
#[derive(Debug)]
pub struct Replica {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub url: String,
}

impl Replica {
    /// Starts `serve` on a free port, and returns when it is ready, with how long that took.
    pub async fn start(
        serve: impl Fn() -> anyhow::Result<Command>,
        log: PathBuf,
        client: &Client,
    ) -> anyhow::Result<(Replica, Duration)> {
        // Somebody may take the port between the look and the start.
        for _ in 0..3 {
            let began = Instant::now();
            let mut replica = Replica::launch(serve()?, &log)?;
            while !client.is_ready(&replica.url).await {
                if replica.has_ended() || began.elapsed() > READY_MAX {
                    break;
                }
                sleep(LOOK_EVERY).await;
            }
            let took = began.elapsed();
            if !replica.has_ended() && took < READY_MAX {
                return Ok((replica, took));
            }
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(20).collect();
        bail!("a replica is not ready; its log ends (newest first):\n{}", last.join("\n"))
    }

    fn launch(mut serve: Command, log: &PathBuf) -> anyhow::Result<Replica> {
        let port = free_port()?;
        let out = File::options().create(true).append(true).open(log)?;
        serve.arg("--listen").arg(format!("127.0.0.1:{port}"));
        serve.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = child::spawn(serve, Signal::SIGKILL).context("cannot start a replica")?;
        Ok(Replica { child, log: log.clone(), url: format!("http://127.0.0.1:{port}") })
    }

    /// Memory in use.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.child.id()).context("the replica's memory cannot be read")
    }

    /// Asks it to leave, and waits until it has.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        child::send(&self.child, Signal::SIGTERM)?;
        let until = Instant::now() + LEAVE_MAX;
        while !self.has_ended() {
            if Instant::now() > until {
                bail!("a replica did not leave within {LEAVE_MAX:?}; its log is {}", self.log.display());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether the process is gone.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut drawn = (0..100).map(|_| rand::random_range(PORTS));
    drawn.find(is_free).context("no free port on 127.0.0.1")
}
