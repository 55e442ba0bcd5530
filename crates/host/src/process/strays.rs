//! Strays: what is left of a worker whose guard was killed. Its processes become children of this process, if this
//! process adopts orphans.
//!
//! Owns the list of guards; any other child is a stray. Spares processes of this process's own session: agents and
//! their descendants have sessions of their own.

use std::{collections::HashSet, io};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getsid},
};
use parking_lot::Mutex;

use super::proc_tree;

/// Started guards, some of them gone. Locked while a guard is started, since an unlisted child counts as a stray.
static GUARDS: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Makes this process adopt orphaned descendants, even if their guards are gone.
///
/// # Errors
/// The operating system's error.
pub fn take_in() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Starts a guard and lists it.
pub(super) fn note_guard<T>(
    start: impl FnOnce() -> io::Result<T>,
    pid: impl FnOnce(&T) -> Option<u32>,
) -> io::Result<T> {
    let mut guards = GUARDS.lock();
    let guard = start()?;
    let pid = pid(&guard).and_then(|pid| i32::try_from(pid).ok());
    guards.get_or_insert_default().extend(pid);
    Ok(guard)
}

/// Sends SIGKILL to every stray and its descendants. Returns the number of strays. Reads `/proc`, and reaps.
pub(super) fn kill_all() -> usize {
    let mut guards = GUARDS.lock();
    let guards = guards.get_or_insert_default();
    let children = proc_tree::children(Pid::this());
    // Checked one by one: a list of children may miss a child whose parent thread is ending.
    guards.retain(|guard| proc_tree::parent(Pid::from_raw(*guard)) == Some(Pid::this()));
    let session = getsid(None).ok();
    let is_stray = |child: &&Pid| !guards.contains(&child.as_raw()) && getsid(Some(**child)).ok() != session;
    let strays: Vec<Pid> = children.iter().filter(is_stray).copied().collect();
    for &stray in &strays {
        let _ = kill(stray, Signal::SIGKILL);
        for below in proc_tree::below(stray) {
            let _ = kill(below, Signal::SIGKILL);
        }
        let _ = waitpid(stray, Some(WaitPidFlag::WNOHANG));
    }
    strays.len()
}
