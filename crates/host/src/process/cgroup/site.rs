//! Where a replica may create groups: in its own group, if the replica may divide it.
//!
//! Refuses a tree that other programs manage: a version-2 group is divided only if it was delegated to this process,
//! and contains no other.

use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::unistd::{AccessFlags, Pid, access, geteuid};

use super::group::{CgroupVersion, Group};
use crate::process::proc_tree;
use lastword_words::units::Size;

/// Where the replica's own processes go before a version-2 group is divided.
const LEAF: &str = "lastword-replica";

/// How often a group is made anew whose parent was removed meanwhile, with the last worker before.
const TRIES: u32 = 5;

/// What the groups of one replica begin with, together.
const PREFIX: &str = "lastword-";

/// A group in which this replica may make others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GroupSite {
    pub(super) dir: PathBuf,
    pub(super) version: CgroupVersion,
    /// Whether the processes in there must leave it first.
    is_undivided: bool,
}

/// Where groups may be made, as far as this shows without trying. Changes nothing.
pub(super) fn find() -> Result<GroupSite, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|why| format!("{path}: {why}"));
    find_in(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
}

/// The same from the two files' texts.
pub(super) fn find_in(groups: &str, mounts: &str) -> Result<GroupSite, String> {
    let (version, path) = own_group(groups).ok_or("this process has no group that could bound memory")?;
    let dirs = mounts.lines().filter_map(|mount| directory(mount, version, path));
    let dir = dirs.into_iter().rfind(|dir| dir.join("cgroup.procs").exists());
    let dir = dir.ok_or("the control groups of this process are not mounted")?;
    match version {
        CgroupVersion::V1 => Ok(GroupSite { dir, version, is_undivided: false }),
        CgroupVersion::V2 => find_v2(dir, path == Path::new("/")),
    }
}

/// The group of this process that bounds, or could bound, its memory, from `/proc/self/cgroup`. Where version 1 has
/// the controller version 2 does not.
fn own_group(groups: &str) -> Option<(CgroupVersion, &Path)> {
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|name| name == "memory") {
            return Some((CgroupVersion::V1, Path::new(path)));
        }
        if number == "0" && controllers.is_empty() {
            unified = Some((CgroupVersion::V2, Path::new(path)));
        }
    }
    unified
}

/// The directory of the group `path`, if this line of `/proc/self/mountinfo` mounts it.
fn directory(mount: &str, version: CgroupVersion, path: &Path) -> Option<PathBuf> {
    let (before, after) = mount.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let is_it = match version {
        CgroupVersion::V1 => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        CgroupVersion::V2 => kind == "cgroup2",
    };
    let mut before = before.split(' ').skip(3);
    let (root, point) = (unescaped(before.next()?), unescaped(before.next()?));
    let below = path.strip_prefix(root).ok()?;
    // What is outside of this namespace of groups is named by `..`.
    let is_inside = !below.components().any(|part| part.as_os_str() == "..");
    (is_it && is_inside).then(|| Path::new(&point).join(below))
}

/// A path as it is, where mountinfo writes blanks as `\040`.
fn unescaped(text: &str) -> String {
    ["040", "011", "012", "134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, is)| text.replace(&format!("\\{code}"), is))
}

/// A version-2 group is divided by whoever it was given to, and must hold nobody else.
fn find_v2(dir: PathBuf, is_root_here: bool) -> Result<GroupSite, String> {
    let refuse = |why: &str| Err(format!("{}: {why}", dir.display()));
    let version = CgroupVersion::V2;
    // Moved already: a process that came after the one that did it.
    if let Some(parent) = dir.parent().filter(|_| dir.ends_with(LEAF))
        && has_memory(parent, "cgroup.subtree_control")
    {
        return Ok(GroupSite { dir: parent.to_owned(), version, is_undivided: false });
    }
    if !has_memory(&dir, "cgroup.controllers") {
        return refuse("the memory controller is not delegated to it");
    }
    // Only of the machine's own root: every other group that is divided holds no process.
    if has_memory(&dir, "cgroup.subtree_control") {
        return Ok(GroupSite { dir, version, is_undivided: false });
    }
    if read_words(&dir, "cgroup.type") != ["domain"] {
        return refuse("it is the root of all groups, or of threads");
    }
    if !is_root_here && !is_delegated(&dir) {
        return refuse("it is not delegated to this process (with systemd: Delegate=memory)");
    }
    let is_writable = |name| access(&dir.join(name), AccessFlags::W_OK).is_ok();
    if !["", "cgroup.procs", "cgroup.subtree_control"].into_iter().all(is_writable) {
        return refuse("it cannot be written to");
    }
    let own = own_processes();
    if !members(&dir).iter().all(|pid| own.contains(pid)) {
        return refuse("processes of others are in it");
    }
    let is_ours = |child: &PathBuf| {
        child.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
    };
    if !children(&dir).iter().all(is_ours) {
        return refuse("groups of others are in it");
    }
    Ok(GroupSite { dir, version, is_undivided: true })
}

/// Whether somebody gave this group away: to this user by its owner, or marked as systemd marks it.
fn is_delegated(dir: &Path) -> bool {
    let user = geteuid();
    let is_given = !user.is_root() && fs::metadata(dir).is_ok_and(|meta| meta.uid() == user.as_raw());
    is_given || [c"trusted.delegate", c"user.delegate"].into_iter().any(|name| is_marked(dir, name))
}

fn is_marked(dir: &Path, name: &std::ffi::CStr) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    let mut value = [0_u8; 8];
    #[allow(unsafe_code, reason = "nix has no call for this")]
    // SAFETY: both texts end in NUL, and the system writes no more than the length that it is given.
    let length =
        unsafe { nix::libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    length == 1 && value[0] == b'1'
}

impl GroupSite {
    /// Makes an empty group with its limits.
    pub(super) fn make(&self, memory: Size) -> io::Result<Group> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let home = self.dir.join(home_name(std::process::id())?);
        let dir = home.join(MADE.fetch_add(1, Ordering::Relaxed).to_string());
        let group = Group::at(dir, self.version);
        let mut tries = 0..TRIES;
        while let Err(why) = make_dirs(&home, &group, self.version) {
            let is_gone = why.kind() == ErrorKind::NotFound;
            if !is_gone || tries.next().is_none() {
                return Err(why);
            }
        }
        let bounded = group.bound(memory);
        bounded.inspect_err(|_| drop(group.remove()))?;
        Ok(group)
    }

    /// Makes a group and removes it again: rights are known only by using them.
    pub(super) fn try_out(&self) -> io::Result<()> {
        self.make(Size::mib(1))?.remove()
    }

    /// Whether processes must move before groups can be made here.
    pub(super) fn must_divide(&self) -> bool {
        self.is_undivided
    }

    /// Makes the place ready and tries it. What was changed in vain is put back.
    pub(super) fn occupy(mut self) -> Result<GroupSite, String> {
        let divided = if self.is_undivided { self.move_out() } else { Ok(()) };
        let tried = divided.and_then(|()| self.try_out());
        if tried.is_err() && self.is_undivided {
            self.move_back();
        }
        self.is_undivided = false;
        tried.map(|()| self).map_err(|why| why.to_string())
    }

    /// This process and its guards into a leaf of their own: then the group can be divided.
    fn move_out(&self) -> io::Result<()> {
        let leaf = self.dir.join(LEAF);
        make_dir(&leaf)?;
        for pid in own_processes() {
            join(&leaf, pid)?;
        }
        // Refused if somebody else came meanwhile.
        divide(&self.dir)
    }

    fn move_back(&self) {
        let _ = fs::write(self.dir.join("cgroup.subtree_control"), "-memory");
        for pid in own_processes() {
            let _ = join(&self.dir, pid);
        }
        let _ = fs::remove_dir(self.dir.join(LEAF));
    }

    /// Removes the empty groups of replicas that are gone. Those of one that lives are its own, and a process that is
    /// left in one belongs to a guard that ends it.
    pub(super) fn sweep(&self) {
        for home in children(&self.dir).into_iter().filter(|home| is_left(home)) {
            for group in children(&home) {
                let _ = fs::remove_dir(group);
            }
            let _ = fs::remove_dir(home);
        }
    }
}

fn make_dirs(home: &Path, group: &Group, version: CgroupVersion) -> io::Result<()> {
    make_dir(home)?;
    if version == CgroupVersion::V2 {
        divide(home)?;
    }
    group.create()
}

/// Where the groups of this replica are, by name: the process with its start, which no other process ever has both of.
pub(super) fn home_name(pid: u32) -> io::Result<String> {
    let start =
        started_at(pid).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be read")))?;
    Ok(format!("{PREFIX}{pid}-{start}"))
}

/// Whether a replica made this group that is gone.
fn is_left(home: &Path) -> bool {
    let name = home.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.split_once('-'));
    let owner = name.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse::<u64>().ok()?)));
    owner.is_some_and(|(pid, start)| started_at(pid) != Some(start))
}

/// When a living process started, in ticks since the machine did.
fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    // A dead one that nobody has reaped is there still.
    let is_dead = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !is_dead)
}

/// This process and everything below it.
fn own_processes() -> Vec<Pid> {
    std::iter::once(Pid::this()).chain(proc_tree::below(Pid::this())).collect()
}

fn members(dir: &Path) -> Vec<Pid> {
    let pids = read_words(dir, "cgroup.procs");
    pids.iter().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

fn join(dir: &Path, pid: Pid) -> io::Result<()> {
    match fs::write(dir.join("cgroup.procs"), pid.to_string()) {
        // It has ended.
        Err(why) if why.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        done => done,
    }
}

/// Gives the groups below this one limits of their own.
fn divide(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.subtree_control"), "+memory")
}

/// Makes a group, unless it is there.
fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(why) if why.kind() != ErrorKind::AlreadyExists => Err(why),
        _ => Ok(()),
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn has_memory(dir: &Path, file: &str) -> bool {
    read_words(dir, file).iter().any(|word| word == "memory")
}

fn read_words(dir: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}
