//! A process namespace of each worker's own, where this machine gives one.
//!
//! Owns its making: the guard is the first process in it, and has a `/proc` that shows no others. When the guard
//! ends, however it ends, the system ends all that is in there; and no process in there can name one outside, so
//! none can signal its guard or its replica. Refuses a namespace without a `/proc` of its own: programs would find
//! other processes under their numbers.

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

/// This very program, even where its file was replaced by a newer release meanwhile.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// What is asked of a guard that is to tell whether there can be others.
pub(super) const PROBE: &str = "probe";

/// Whether workers get a namespace of their own here.
///
/// # Errors
/// What the system said.
pub fn probe() -> Result<(), String> {
    probe_with(Path::new(OWN_PROGRAM))
}

/// Whether workers get one, asked once; blocks for some milliseconds.
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

/// Starts something on a thread whose children are in a new namespace: a thread cannot come back from that.
fn apart<T: Send + 'static>(start: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let apart = move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        start()
    };
    let thread = std::thread::Builder::new().name("birth".to_owned()).spawn(apart)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts a guard panicked")))
}

/// The namespace that this guard is the first process of.
pub(super) struct OwnNamespace {
    /// `/proc` as it is outside.
    outside: File,
}

impl OwnNamespace {
    /// Makes this process at home in its namespace, where it has one.
    pub(super) fn enter() -> io::Result<Option<OwnNamespace>> {
        if Pid::this().as_raw() != 1 {
            return Ok(None);
        }
        // Nobody in here looks into what keeps it.
        prctl::set_dumpable(false)?;
        let outside = File::open("/proc")?;
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted outside later is to be seen in here, and not the other way round.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
        Ok(Some(OwnNamespace { outside }))
    }

    /// The number that a child of this guard, which is not reaped yet, has outside.
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
