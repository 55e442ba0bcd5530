//! The end of a cluster: what must hold when its test is over.

use std::{fs, path::Path, time::Duration};

use lastword_devkit::{child, postgres::StopMode};

use super::{Cluster, lock};

/// How long what a replica started may outlive it.
const LEFTOVERS_MAX: Duration = Duration::from_secs(15);
/// How much of each log a failed test shows, in lines.
const LOG_LINES: usize = 200;

impl Drop for Cluster {
    fn drop(&mut self) {
        let has_failed = std::thread::panicking();
        let wrong = if has_failed { Vec::new() } else { self.wrongs() };
        if has_failed || !wrong.is_empty() {
            self.show_logs();
        }
        if !has_failed && wrong.is_empty() {
            self.verify();
        }
        lock(&self.hosts).clear();
        lock(&self.replicas).clear();
        let stopped = lock(&self.postgres).stop(StopMode::Immediate);
        let left = leftovers_of(self.home.path());
        if !has_failed {
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
            stopped.unwrap();
            assert!(left.is_empty(), "processes were left behind:\n{}", left.join("\n"));
        }
    }
}

impl Cluster {
    /// What is wrong with the replicas and the hosts, a line each.
    fn wrongs(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (i, replica) in lock(&self.replicas).iter_mut().enumerate() {
            if replica.should_live()
                && let Some(status) = replica.exit()
            {
                wrong.push(format!("replica {i} ended by itself ({status})"));
            }
            let log = replica.log();
            wrong.extend(
                log.lines()
                    .filter(|line| line.contains("panicked"))
                    .map(|line| format!("replica {i}: {line}")),
            );
        }
        for (n, it) in lock(&self.hosts).iter_mut().enumerate() {
            if let Some(status) = it.lost() {
                wrong.push(format!("host {n} ended by itself ({status})"));
            }
            let log = it.host.log();
            let panics = log.lines().filter(|line| line.contains("panicked"));
            wrong.extend(panics.map(|line| format!("host {n}: {line}")));
        }
        wrong
    }

    fn show_logs(&self) {
        for (i, replica) in lock(&self.replicas).iter().enumerate() {
            let log = replica.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("--- replica {i}, process {}, the end of its log ---\n{end}\n", replica.pid());
        }
    }
}

/// What still works under `home` after a while, a line each.
pub fn leftovers_of(home: &Path) -> Vec<String> {
    let mut left = Vec::new();
    child::wait(LEFTOVERS_MAX, || {
        left = leftovers(home);
        left.is_empty()
    });
    left
}

/// Every process that works under `home` or was told of it, a line each.
fn leftovers(home: &Path) -> Vec<String> {
    let name = home.to_string_lossy().into_owned();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        let is_under = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(home));
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if pid != std::process::id() && (is_under || String::from_utf8_lossy(&environ).contains(&name)) {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            left.push(format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    left
}
