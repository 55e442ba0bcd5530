//! The machine that figures were measured on, without which the figures mean nothing.
//!
//! Owns what is read from the system, and raises the limit of open files, which ten thousand streams need here and in
//! every replica that inherits it.

use std::{fs, path::Path, process::Command};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Where and with what.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors that this program may use.
    pub cores: usize,
    /// What they call themselves.
    pub processor: String,
    /// Of memory, in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub system: String,
    /// The release of this program.
    pub version: &'static str,
    /// How it was built.
    pub build: &'static str,
    /// The commit of the directory that it was run in, where that is one.
    pub commit: Option<String>,
    /// What else ran when it began: the load of the last minute.
    pub load_before: Option<f64>,
}

impl Machine {
    /// This one.
    pub fn look() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_mib: memory_kib / 1024,
            system: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "optimised" },
            commit: commit(),
            load_before: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

fn commit() -> Option<String> {
    let said = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?.trim().to_owned();
    (said.status.success() && !text.is_empty()).then_some(text)
}

/// The kind of file system that a path lies on. A commit on one that lives in memory is none.
pub fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    below.max_by_key(|(length, _)| *length).map_or("unknown", |(_, kind)| kind).to_owned()
}

/// Lets this process and its children open as many files as the system permits.
pub fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Memory of a process that is in use, in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_told_from_others() {
        let machine = Machine::look();
        assert!(machine.cores > 0 && machine.memory_mib > 0);
        assert!(resident_bytes(std::process::id()).unwrap() > 1_000_000);
        assert_eq!(file_system(Path::new("/proc/self")), "proc");
        assert!(raise_file_limit() >= 256);
    }
}
