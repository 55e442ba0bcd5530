//! The processes below this one, as `/proc` shows them: how many, how large, and their end.
//!
//! Owns the reading of `/proc`. A regular look is at its own tree, never at the whole machine: many
//! guards look twice a second each. A look is a sample. Processes come and go meanwhile, so
//! [`kill_below`] is to be repeated until nothing is left.

use std::{collections::BTreeSet, fs};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, getpgid, getpgrp},
};

/// What a tree uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Living processes; zombies do not count.
    pub processes: u32,
    /// Resident memory, in bytes.
    pub resident: u64,
}

/// What everything below `root` uses, `root` itself excluded. Pages that several processes share
/// are counted for each; [`shared_once`] is exact and dearer.
pub fn usage_below(root: Pid) -> Usage {
    let mut usage = Usage::default();
    for status in below(root).into_iter().filter_map(|pid| read(pid, "status")) {
        if !matches!(field(&status, "State:"), Some("Z" | "X")) {
            usage.processes += 1;
            usage.resident += kib(&status, "VmRSS:");
        }
    }
    usage
}

/// Resident memory below `root` in bytes, each shared page split among those who share it.
pub fn shared_once(root: Pid) -> u64 {
    let resident = |pid| match read(pid, "smaps_rollup") {
        Some(rollup) => kib(&rollup, "Pss:"),
        None => read(pid, "status").map_or(0, |status| kib(&status, "VmRSS:")),
    };
    below(root).into_iter().map(resident).sum()
}

/// SIGKILLs everything below `root` that is seen now, whole groups at a time: the system delivers
/// to a group at one instant, so a group that forks as fast as it can still dies.
pub fn kill_below(root: Pid) {
    let mut groups = BTreeSet::from([getpgrp()]);
    for pid in below(root) {
        // A group never reaches beyond its session, and the agent's session is below `root`.
        if let Ok(group) = getpgid(Some(pid))
            && groups.insert(group)
        {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// SIGKILLs every process of this machine whose environment began with `name=value`; how many there
/// were. For a tree that has lost its root. Dear: it looks at every process.
pub fn kill_marked(name: &str, value: &str) -> usize {
    let wanted = format!("{name}={value}");
    let is_marked = |pid: &Pid| {
        let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
    };
    all().filter(is_marked).filter(|pid| kill(*pid, Signal::SIGKILL).is_ok()).count()
}

/// Every process below `root`.
pub(super) fn below(root: Pid) -> BTreeSet<Pid> {
    let mut found = BTreeSet::new();
    let mut unvisited = vec![root];
    while let Some(parent) = unvisited.pop() {
        for child in children(parent) {
            if child != root && found.insert(child) {
                unvisited.push(child);
            }
        }
    }
    found
}

/// The processes that `parent` started, or took in.
pub(super) fn children(parent: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_whitespace().filter_map(pid)),
            // A kernel built without that file. (Or a thread that has just ended: rare enough.)
            Err(_) if thread.path().exists() => return children_by_parent(parent),
            Err(_) => {}
        }
    }
    children
}

/// The slow way: asks every process of the machine for its parent.
fn children_by_parent(parent: Pid) -> Vec<Pid> {
    all().filter(|candidate| self::parent(*candidate) == Some(parent)).collect()
}

/// The process that started this one, or took it in.
pub(super) fn parent(child: Pid) -> Option<Pid> {
    pid(field(&read(child, "status")?, "PPid:")?)
}

/// Whether the process is gone though its guard has not told yet: a turn must not be handed to it.
pub(crate) fn is_dead(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the command's name, which may hold anything but ends at the last `)`.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Every process of this machine.
fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| pid(entry.file_name().to_str()?))
}

fn pid(text: &str) -> Option<Pid> {
    text.parse().ok().map(Pid::from_raw)
}

fn read(pid: Pid, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// The first word after `name` at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

/// A field that is given in kB, in bytes.
fn kib(text: &str, name: &str) -> u64 {
    field(text, name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_child_is_seen_both_ways_and_counted() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it has answered it waits, and no longer grows between one look and the next.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let (me, it) = (Pid::this(), Pid::from_raw(child.id() as i32));
        assert!(children(me).contains(&it));
        assert!(children_by_parent(me).contains(&it));
        let usage = usage_below(me);
        assert!(usage.processes >= 1 && usage.resident > 0);
        assert!(shared_once(me) > 0 && shared_once(me) <= usage.resident);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!below(me).contains(&it));
    }
}
