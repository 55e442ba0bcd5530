//! Child processes that never outlive this process.
//!
//! Owns the one thread that starts them. The kernel sends the parent-death signal when the *thread* that forked a child
//! ends, and threads of an async runtime come and go; so every child is forked from a thread that lives as long as the
//! process. Keeps: however this process ends, `kill -9` included, its children get the signal.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, getpid, getppid},
};

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One order to the thread that forks, and where it answers.
struct Birth {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

static BIRTHS: Mutex<Option<SyncSender<Birth>>> = Mutex::new(None);

/// Starts `command` in a process group of its own (so that a terminal's Ctrl-C does not reach it) and
/// has the kernel send it `death_signal` when this process ends, however it ends.
///
/// # Errors
/// What the operating system says when the program cannot be started.
pub fn spawn(mut command: Command, death_signal: Signal) -> io::Result<Child> {
    command.process_group(0);
    die_with_us(&mut command, death_signal);
    let (answer, born) = sync_channel(1);
    births()?.send(Birth { command, answer }).map_err(io::Error::other)?;
    born.recv().map_err(io::Error::other)?
}

/// Sends `which` to a child that has not been waited for yet.
///
/// # Errors
/// What the operating system says, such as that there is no such process.
pub fn send(child: &Child, which: Signal) -> io::Result<()> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(signal::kill(Pid::from_raw(pid), which)?)
}

/// Blocks until `is_done`, looking every few milliseconds; false when it has not come to that within
/// `at_most`. For the starts and ends of processes, which cannot be awaited otherwise by a `Drop`.
pub fn wait(at_most: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + at_most;
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        #[allow(clippy::disallowed_methods, reason = "this function blocks, and says so")]
        std::thread::sleep(LOOK_EVERY);
    }
}

fn births() -> io::Result<SyncSender<Birth>> {
    let mut births = BIRTHS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(open) = births.as_ref() {
        return Ok(open.clone());
    }
    let (orders, inbox) = sync_channel(8);
    std::thread::Builder::new().name("births".to_owned()).spawn(move || fork_on_order(&inbox))?;
    Ok(births.insert(orders).clone())
}

fn fork_on_order(inbox: &Receiver<Birth>) {
    while let Ok(Birth { mut command, answer }) = inbox.recv() {
        // Nobody waits for the answer any more: then the child must not live on unseen.
        if let Err(unheard) = answer.send(command.spawn())
            && let Ok(mut child) = unheard.0
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the parent-death signal can only be set between fork and exec")]
fn die_with_us(command: &mut Command, death_signal: Signal) {
    let parent = getpid();
    let bind = move || {
        // This runs after the change of user, which would have cleared the setting.
        nix::sys::prctl::set_pdeathsig(death_signal)?;
        // We may have died before the line above; then no signal will ever come.
        if getppid() != parent {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two plain system calls; it neither allocates
    // nor takes a lock.
    unsafe { command.pre_exec(bind) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_us(_command: &mut Command, _death_signal: Signal) {}
