//! One replica: a process of `lastword serve`, its log, and whether it should live.
//!
//! Keeps: however this process ends, the replica ends with it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use lastword_devkit::child;
use nix::sys::signal::Signal;

/// Below the ports that systems take for outgoing connections, and beside those that private
/// Postgres servers take.
const PORTS: std::ops::Range<u16> = 12_000..20_000;

/// A replica of a test's cluster.
pub struct Replica {
    port: u16,
    log: PathBuf,
    child: Child,
    is_frozen: bool,
    /// Whether it was told to leave, or killed.
    is_leaving: bool,
}

impl Replica {
    /// Starts `serve` on a port that was free a moment ago.
    pub fn start(mut serve: Command, log: PathBuf) -> Replica {
        let port = free_port();
        let out = File::create(&log).unwrap();
        serve.arg("--listen").arg(format!("127.0.0.1:{port}"));
        serve.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = child::spawn(serve, Signal::SIGKILL).unwrap();
        Replica { port, log, child, is_frozen: false, is_leaving: false }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process id, also after its end.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it neither was told to leave nor is frozen.
    pub fn should_answer(&self) -> bool {
        !self.is_leaving && !self.is_frozen
    }

    /// Whether nobody told it to leave.
    pub fn should_live(&self) -> bool {
        !self.is_leaving
    }

    /// Whether its process is gone.
    pub fn has_died(&mut self) -> bool {
        self.exit().is_some()
    }

    /// How its process ended.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILLs it and waits.
    pub fn kill(&mut self) {
        self.is_leaving = true;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal that makes it leave.
    pub fn leave(&mut self, which: Signal) {
        self.is_leaving = true;
        child::send(&self.child, which).unwrap();
    }

    /// Stops it in its tracks, or lets it go on.
    pub fn freeze(&mut self, is_frozen: bool) {
        self.is_frozen = is_frozen;
        child::send(&self.child, if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let found = (0..100)
        .map(|_| rand::random_range(PORTS))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    found.expect("a free port")
}
