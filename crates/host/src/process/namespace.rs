//! A PID namespace for each worker, where the machine allows it.
//!
//! Owns its creation: the guard is its first process, with a `/proc` of its own. When the guard ends, the kernel
//! ends every process in the namespace; no process in it can name, and so signal, its guard or its replica. Never
//! without its own `/proc`: programs would find other processes under their pids.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::prctl,
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
};

/// This program's executable, even if its file was replaced by a newer release meanwhile.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Argument of a guard that only tests whether namespaces can be created.
pub(super) const PROBE: &str = "probe";

/// Tests whether workers get their own namespace here.
///
/// # Errors
/// The system's error.
pub fn probe() -> Result<(), String> {
    probe_with(Path::new(OWN_PROGRAM))
}

/// Whether workers get their own namespace. The first call blocks for some milliseconds; the result is kept.
pub(super) fn is_available(program: PathBuf) -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        let probed = probe_with(&program);
        if let Err(why) = &probed {
            tracing::info!(why, "workers have no process namespace of their own on this machine");
        }
        probed.is_ok()
    })
}

fn probe_with(program: &Path) -> Result<(), String> {
    let mut command = std::process::Command::new(program);
    command.args(["__guard", PROBE]).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    let done = apart(move || command.output()).map_err(|why| why.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    match done.status {
        status if ExitStatus::success(&status) => Ok(()),
        status if said.is_empty() => Err(status.to_string()),
        _ => Err(said),
    }
}

/// Starts `command` as the first process of a new namespace.
pub(super) fn spawn(mut command: Command) -> io::Result<Child> {
    let runtime = Handle::current();
    apart(move || {
        let _runtime = runtime.enter();
        command.spawn()
    })
}

/// Runs `start` on a thread whose children are in a new namespace; a new thread, since `unshare` cannot be undone.
fn apart<T: Send + 'static>(start: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let apart = move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        start()
    };
    let thread = std::thread::Builder::new().name("birth".to_owned()).spawn(apart)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts a guard panicked")))
}

/// The namespace whose first process this guard is.
pub(super) struct OwnNamespace {
    /// The outer `/proc`.
    outside: File,
}

impl OwnNamespace {
    /// Sets up the namespace; `None` if this process has none of its own.
    pub(super) fn enter() -> io::Result<Option<OwnNamespace>> {
        if Pid::this().as_raw() != 1 {
            return Ok(None);
        }
        // No process in the namespace may inspect its guard.
        prctl::set_dumpable(false)?;
        let outside = File::open("/proc")?;
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Later mounts outside become visible inside, but not the other way round.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
        Ok(Some(OwnNamespace { outside }))
    }

    /// The outer pid of a child of this guard that is not reaped yet.
    pub(super) fn outside(&self, child: Pid) -> Option<Pid> {
        let outside = format!("/proc/self/fd/{}", self.outside.as_raw_fd());
        let children = fs::read_to_string(format!("{outside}/thread-self/children")).ok()?;
        let mut children = children.split_whitespace();
        let is_it = |pid: &&str| {
            let status = fs::read_to_string(format!("{outside}/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok())
                == Some(child.as_raw())
        };
        children.find(is_it)?.parse().ok().map(Pid::from_raw)
    }
}
