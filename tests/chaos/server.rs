//! One Postgres of a pair: a data directory, the server over it, and its end by `kill -9`.
//!
//! Separate from `lastword`'s own private server, which is never a standby. Runs as the owner of the data directory.
//! Keeps: a dropped server leaves no process; its directory belongs to the caller.

#![allow(clippy::disallowed_methods, reason = "it stands outside any replica")]

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use lastword_devkit::{child, postgres::Binaries};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};

/// How long a start or an end may take. Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Below the ports that systems take for outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const START_TRIES_MAX: u32 = 20;

/// The programs of Postgres, and the user they run as: it refuses root.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
    user: Option<(u32, u32)>,
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// There is no Postgres on this machine, or a part of it is missing.
    pub fn find() -> anyhow::Result<Programs> {
        // What is on the path may be a link to one program; the others are where it points.
        let postgres = fs::canonicalize(Binaries::find(None)?.postgres())?;
        let dir = postgres.parent().context("no directory of programs")?.to_owned();
        for program in ["pg_basebackup", "pg_ctl"] {
            if !dir.join(program).is_file() {
                bail!("{} has no `{program}`", dir.display());
            }
        }
        let mut user = None;
        if Uid::effective().is_root() {
            let names = ["postgres", "nobody"].into_iter();
            let found = names.filter_map(|name| User::from_name(name).ok().flatten()).next();
            let found = found.context("Postgres does not run as root, and there is no other user for it")?;
            user = Some((found.uid.as_raw(), found.gid.as_raw()));
        }
        Ok(Programs { dir, user })
    }

    /// A command that none of our environment can steer.
    fn command(&self, program: &str, in_dir: &Path) -> Command {
        let mut command = Command::new(self.dir.join(program));
        command.env_clear().env("LC_ALL", "C").current_dir(in_dir).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs one to its end.
    ///
    /// # Errors
    /// It fails; the message is what it said.
    pub async fn run(
        &self,
        program: &str,
        in_dir: &Path,
        args: &[&str],
        password: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::from(self.command(program, in_dir));
        command
            .args(args)
            .envs(password.map(|text| ("PGPASSWORD", text)))
            .kill_on_drop(true)
            .process_group(0);
        let said = tokio::time::timeout(PATIENCE, command.output()).await??;
        if !said.status.success() {
            bail!("{program} ({}): {}", said.status, String::from_utf8_lossy(&said.stderr).trim());
        }
        Ok(())
    }

    /// Makes a directory that only the user of Postgres can use.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn make_dir(&self, dir: &Path) -> anyhow::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().mode(0o700).create(dir)?;
        let (uid, gid) = self.user.unzip();
        Ok(std::os::unix::fs::chown(dir, uid, gid)?)
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    data: PathBuf,
    password: String,
    address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts one over `data`, and returns when it takes connections: a standby as soon as it answers
    /// questions.
    ///
    /// # Errors
    /// It does not start; the message is its log.
    pub async fn start(
        programs: &Programs,
        data: PathBuf,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Server> {
        // Beside the directory: a copy of that one takes every file with it.
        let log = data.with_extension("log");
        let password = fs::read_to_string(data.join("lastword.password"))?;
        for _ in 0..START_TRIES_MAX {
            let port = free_port()?;
            let out = File::create(&log)?;
            let mut command = programs.command("postgres", &data);
            command.arg("-D").arg(&data).stdout(out.try_clone()?).stderr(out);
            for (name, value) in [("port", port.to_string().as_str())].iter().chain(settings) {
                command.arg("-c").arg(format!("{name}={value}"));
            }
            let child = child::spawn(command, Signal::SIGINT)?;
            let address = ([127, 0, 0, 1], port).into();
            let mut server =
                Server { data: data.clone(), password: password.clone(), address, child: Some(child) };
            let is_up = eventually(|| server.state().is_some() || server.has_ended()).await;
            if is_up && !server.has_ended() {
                return Ok(server);
            }
            let said = fs::read_to_string(&log).unwrap_or_default();
            // Another process was faster.
            if !said.contains("could not bind") {
                bail!("a Postgres over {} did not start:\n{said}", data.display());
            }
        }
        bail!("no free port in {START_TRIES_MAX} tries")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where to connect.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@{}/postgres", self.password, self.address)
    }

    /// The superuser's password; a copy of the directory has the same.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Its directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The process id of its first process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Makes a standby a primary; returns when it takes writes.
    ///
    /// # Errors
    /// It does not become one.
    pub async fn promote(&self, programs: &Programs) -> anyhow::Result<()> {
        let data = self.data.to_string_lossy();
        programs.run("pg_ctl", &self.data, &["promote", "--wait", "-D", &data], None).await?;
        if !eventually(|| self.state() == Some(State::Ready)).await {
            bail!("the standby was promoted and does not take writes");
        }
        Ok(())
    }

    /// SIGKILLs all of it, and returns when all of it is gone.
    ///
    /// # Errors
    /// A process outlives its SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // It ended by itself: its number may be another's by now, and what it left follows it.
        if !matches!(child.try_wait(), Ok(None)) {
            return Ok(());
        }
        // First nobody can be born any more; then all die.
        child::send(&child, Signal::SIGSTOP)?;
        let first = i32::try_from(child.id())?;
        let is_stopped = child::wait(PATIENCE, || matches!(state_of(first), Some('T' | 'Z') | None));
        let memory = shared_memory(&self.data);
        let all: Vec<i32> = [first].into_iter().chain(children_of(first)).collect();
        for pid in &all {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        child.wait()?;
        let are_gone =
            child::wait(PATIENCE, || all.iter().all(|&pid| matches!(state_of(pid), Some('Z') | None)));
        if let Some(id) = memory {
            // A server that ends by itself removes it.
            let _ = Command::new("ipcrm").args(["-m", &id]).stderr(Stdio::null()).status();
        }
        if !is_stopped || !are_gone {
            bail!("some of {all:?} outlived a SIGKILL");
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// What its pid file says; `None` while it takes no connections.
    fn state(&self) -> Option<State> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid: u32 = lines.next()?.trim().parse().ok()?;
        // Lines: pid, directory, start time, port, socket directory, address, shared memory, state.
        match lines.nth(6)?.trim() {
            _ if Some(pid) != self.pid() => None,
            "ready" => Some(State::Ready),
            "standby" => Some(State::Standby),
            _ => None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(why) = self.kill() {
            eprintln!("a Postgres of a pair may still run: {why:#}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Standby,
}

async fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

fn free_port() -> io::Result<u16> {
    let port = (0..100)
        .map(|_| rand::random_range(PORTS))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    port.ok_or_else(|| io::Error::other("no free port"))
}

/// The state and the parent of a process, from its line in `/proc`.
fn stat_of(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn state_of(pid: i32) -> Option<char> {
    stat_of(pid).map(|(state, _)| state)
}

fn children_of(parent: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| stat_of(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// The id of the System V segment by which two servers over one directory would notice each other.
fn shared_memory(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().nth(6)?.split_whitespace().nth(1).map(str::to_owned)
}
