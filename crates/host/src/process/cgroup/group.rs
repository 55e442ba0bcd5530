//! The control group of one worker: its limits, how a process joins it, what the kernel did in it, and its removal.
//!
//! Owns the names of the files, in both versions of control groups.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use lastword_words::units::Size;

/// What may be missing to its limit when a group of version 1 is over: the largest piece that is worth a kill.
const LAST_CHARGE: u64 = 64 << 10;

/// The two designs of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CgroupVersion {
    V1,
    V2,
}

impl CgroupVersion {
    /// The version as people write it.
    pub(super) fn number(self) -> u8 {
        match self {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        }
    }
}

/// The group of one worker: what its guard is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    dir: PathBuf,
    version: CgroupVersion,
}

impl Group {
    /// A group that is to be made here.
    pub(super) fn at(dir: PathBuf, version: CgroupVersion) -> Self {
        Group { dir, version }
    }

    /// Makes it, below what is made already.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.dir)
    }

    pub(super) fn is_there(&self) -> bool {
        self.dir.exists()
    }

    /// Bounds what is resident, and what would be swapped out to stay below: else a worker over its limit would only be
    /// slow. Machines without swap lack these files.
    pub(super) fn bound(&self, memory: Size) -> io::Result<()> {
        let limit = memory.0.to_string();
        let needed = |name: &str, value: &str| fs::write(self.dir.join(name), value);
        let where_there_is = |name: &str, value: &str| match needed(name, value) {
            Err(why) if why.kind() != ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        };
        match self.version {
            CgroupVersion::V1 => {
                needed("memory.limit_in_bytes", &limit)?;
                where_there_is("memory.memsw.limit_in_bytes", &limit)
            }
            CgroupVersion::V2 => {
                needed("memory.max", &limit)?;
                // All of a worker or nothing: half a tree is no worker.
                needed("memory.oom.group", "1")?;
                where_there_is("memory.swap.max", "0")
            }
        }
    }

    /// The file by which a process joins: `0` is whoever writes.
    pub(in crate::process) fn entry(&self) -> io::Result<File> {
        File::options().write(true).open(self.dir.join("cgroup.procs"))
    }

    /// Tells when the kernel is about to kill in the group, for its limit or that of one above; `None` in version 2,
    /// which ends all of the group at once, and where the kernel does not tell.
    pub(in crate::process) fn alarm(&self) -> Option<EventFd> {
        if self.version == CgroupVersion::V2 {
            return None;
        }
        let alarm = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
        let subject = File::open(self.dir.join("memory.oom_control")).ok()?;
        let order = format!("{} {}", alarm.as_raw_fd(), subject.as_raw_fd());
        fs::write(self.dir.join("cgroup.event_control"), order).ok()?;
        Some(alarm)
    }

    /// Whether the kernel has killed in the group because it was over its own limit. Kills for the limit of a group
    /// above, such as the container's, are told as what they are: kills.
    pub(in crate::process) fn is_over(&self) -> bool {
        match self.version {
            CgroupVersion::V1 => {
                let met = self.number("memory.max_usage_in_bytes", "") + LAST_CHARGE;
                self.number("memory.oom_control", "oom_kill ") > 0
                    && met >= self.number("memory.limit_in_bytes", "")
            }
            // What is counted for groups below a limit are the kills alone.
            CgroupVersion::V2 => {
                self.number("memory.events", "oom_kill ") > 0 && self.number("memory.events", "oom ") > 0
            }
        }
    }

    /// What a file says behind `name`; 0 where it says nothing.
    fn number(&self, file: &str, name: &str) -> u64 {
        let told = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let number = told.lines().find_map(|line| line.strip_prefix(name));
        number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes it, and what held it if nothing else is in there. Fails while a process in it dies.
    pub(in crate::process) fn remove(&self) -> io::Result<()> {
        let removed = remove_dir(&self.dir);
        if let Some(home) = self.dir.parent() {
            let _ = fs::remove_dir(home);
        }
        removed
    }

    /// SIGKILLs whatever is still in there and removes it. Whether it is gone.
    pub(super) fn clear(&self) -> bool {
        let members = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        // A process of a namespace that cannot be seen from here is a 0, which would be this process's own group.
        for pid in members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.remove().is_ok()
    }
}

/// A group that this replica has made. Dropped it is removed, unless its worker has joined: then that worker's guard
/// does it, and this replica after a guard that was killed.
#[derive(Debug)]
pub(in crate::process) struct HeldGroup(Group);

impl HeldGroup {
    pub(super) fn new(group: Group) -> Self {
        HeldGroup(group)
    }

    pub(in crate::process) fn group(&self) -> &Group {
        &self.0
    }
}

impl Drop for HeldGroup {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

/// Removes a group, unless it is gone.
fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(why) if why.kind() != ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}
