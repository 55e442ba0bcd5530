//! A server that an earlier process left over the data directory.
//!
//! Owns the reading of `postmaster.pid`. Refuses to signal a process that is not a running Postgres in that very
//! directory: process ids are reused.

use std::{fs, path::Path, time::Duration};

use anyhow::bail;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::child;

/// How long each way of asking may take.
const ASK_MAX: Duration = Duration::from_secs(20);

/// Stops the server that still works in `data`, if there is one.
pub(super) fn stop(data: &Path) -> anyhow::Result<()> {
    let Some(pid) = first_line_pid(data) else { return Ok(()) };
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
        if !is_ours(pid, data) {
            return Ok(());
        }
        tracing::warn!(pid, %signal, "stopping a Postgres left over from an earlier run");
        let _ = kill(Pid::from_raw(pid), signal);
        if child::wait(ASK_MAX, || !is_ours(pid, data)) {
            return Ok(());
        }
    }
    bail!("process {pid}, a Postgres over {}, cannot be stopped", data.display())
}

/// The process id of a server over `data` that takes connections.
pub(super) fn ready_pid(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    // Lines: pid, directory, start time, port, socket directory, address, shared memory, state.
    (lines.nth(6)?.trim() == "ready").then_some(pid)
}

fn first_line_pid(data: &Path) -> Option<i32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// A server works in its data directory, so its current directory tells whose it is. A process that
/// has ended but was not waited for has none.
fn is_ours(pid: i32, data: &Path) -> bool {
    let works_in = fs::read_link(format!("/proc/{pid}/cwd"));
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    match (works_in, name, fs::canonicalize(data)) {
        (Ok(works_in), Ok(name), Ok(data)) => works_in == data && name.starts_with("postgres"),
        _ => false,
    }
}
