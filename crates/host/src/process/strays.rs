//! Strays: what is left of a worker whose guard was killed. It comes to this process, where that takes orphans in.
//!
//! Owns the list of guards, and by it what is none. Refuses what shares this process's session: agents and all that
//! they start have sessions of their own.

use std::{
    collections::HashSet,
    io,
    sync::{Mutex, PoisonError},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getsid},
};

use super::proc_tree;

/// Guards that were started, some of them gone. Locked while one is born: until it is in here it is a stray.
static GUARDS: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Has orphans of this process's descendants come to it, whatever becomes of their guards.
///
/// # Errors
/// What the operating system says.
pub fn take_in() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Starts a guard, and notes it.
pub(super) fn note_guard<T>(
    start: impl FnOnce() -> io::Result<T>,
    pid: impl FnOnce(&T) -> Option<u32>,
) -> io::Result<T> {
    let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let guard = start()?;
    let pid = pid(&guard).and_then(|pid| i32::try_from(pid).ok());
    guards.get_or_insert_default().extend(pid);
    Ok(guard)
}

/// SIGKILLs every stray that there is now with all below it; how many there were. Reads `/proc`, and reaps.
pub(super) fn kill_all() -> usize {
    let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let guards = guards.get_or_insert_default();
    let children = proc_tree::children(Pid::this());
    // Asked one by one: a list of children may lack one whose thread is just ending.
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
