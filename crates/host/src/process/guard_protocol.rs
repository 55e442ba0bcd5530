//! The lifeline between a replica and the guard of one worker, and the messages on it.
//!
//! Owns the messages (one JSON object a line, in both directions) and the guard's end. Both ends are the same
//! build, so the format may change freely. If one end closes, the other end's process is dead.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};

use super::{cgroup::Group, user::User};

/// The guard's file descriptor of the lifeline.
pub const GUARD_FD: i32 = 3;

/// How long a guard waits for the next part of its plan.
const PLAN_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest plan, in bytes.
const PLAN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The first line to the guard: what to run, and its limits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The agent's whole environment.
    pub env: BTreeMap<String, String>,
    /// The agent's working directory.
    pub cwd: PathBuf,
    /// Resident memory of the whole tree, in bytes.
    pub memory_bytes: u64,
    /// Processes in the tree, the agent's own included.
    pub processes_max: u32,
    /// The group that bounds its memory, where there is one.
    pub group: Option<Group>,
    /// The largest file, in bytes.
    pub file_bytes: u64,
    /// The user to run as; `None`: the guard's own.
    pub user: Option<User>,
    /// Milliseconds from SIGTERM to SIGKILL.
    pub stop_grace_ms: u64,
    /// Milliseconds the replica may be silent.
    pub silence_max_ms: u64,
}

/// A later line to the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardOrder {
    /// Renews the lifeline; whether the worker has a turn.
    Renew(bool),
    /// SIGTERM to the agent's group, SIGKILL to the tree after the grace period.
    Stop {},
    /// SIGKILL to the tree.
    Kill {},
}

impl GuardOrder {
    /// The order as one line, with its newline.
    pub const fn line(self) -> &'static [u8] {
        match self {
            GuardOrder::Renew(true) => b"{\"renew\":true}\n",
            GuardOrder::Renew(false) => b"{\"renew\":false}\n",
            GuardOrder::Stop {} => b"{\"stop\":{}}\n",
            GuardOrder::Kill {} => b"{\"kill\":{}}\n",
        }
    }
}

/// A line from the guard: `spawned` or `refused`, then `exited`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The agent runs.
    Spawned {
        /// The process id; also the id of its group and session.
        pid: i32,
        /// Why it is not in the control group that was made for it, where that is so.
        unbound: Option<String>,
    },
    /// The agent could not be started.
    Refused(SpawnRefusal),
    /// The agent and everything it started are gone.
    Exited(AgentEnd),
}

/// Why an agent could not be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnRefusal {
    /// The kind of failure.
    pub kind: SpawnObstacle,
    /// The system's error number, if any.
    pub errno: Option<i32>,
    /// For operators.
    pub detail: String,
}

/// Why an agent cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnObstacle {
    /// The program, or its interpreter, does not exist.
    NotFound,
    /// The program exists but may not be executed.
    NotExecutable,
    /// The working directory cannot be entered.
    Workdir,
    /// Anything else.
    Other,
}

/// How an agent ended. At most one of `code` and `signal` is set, and at most one of the flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEnd {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ended the agent.
    pub signal: Option<i32>,
    /// Whether the tree exceeded its memory limit.
    #[serde(default)]
    pub oom: bool,
    /// Whether the tree had too many processes.
    #[serde(default)]
    pub processes: bool,
    /// Whether the replica was silent too long.
    #[serde(default)]
    pub silence: bool,
}

/// The guard's end of the lifeline, with the bytes read so far.
pub(super) struct GuardEnd {
    socket: UnixStream,
    inbox: Vec<u8>,
}

impl GuardEnd {
    /// Takes the lifeline, and closes every other inherited descriptor: the agent must inherit its three pipes and
    /// nothing else.
    pub(super) fn take() -> io::Result<Self> {
        let mut strays = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let fd = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            strays.extend(fd.filter(|fd| *fd > GUARD_FD));
        }
        for fd in strays {
            let _ = nix::unistd::close(fd);
        }
        #[allow(unsafe_code, reason = "a descriptor that was handed over by number")]
        // SAFETY: the replica created it for this process, and nothing else here uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(GUARD_FD) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(GuardEnd { socket: UnixStream::from(fd), inbox: Vec::new() })
    }

    /// The plan; `None` if the replica is gone before it sent one. Later reads do not block.
    pub(super) fn plan(&mut self) -> io::Result<Option<Plan>> {
        self.socket.set_nonblocking(true)?;
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.inbox.len() > PLAN_BYTES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            wait(&[self.socket.as_fd()], PLAN_TIMEOUT)?;
            if !self.fill() {
                return Ok(None);
            }
        }
    }

    /// Reads what is there. Returns false if the replica is gone.
    pub(super) fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => self.inbox.extend_from_slice(&chunk[..n]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return why.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    pub(super) fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.inbox.iter().position(|b| *b == b'\n')?;
        let rest = self.inbox.split_off(end + 1);
        Some(std::mem::replace(&mut self.inbox, rest))
    }

    /// Sends a report. The socket's buffer is empty, so these few bytes always fit.
    pub(super) fn report(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.socket.write_all(&line)
    }
}

impl AsFd for GuardEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of `fds` is readable, or for `timeout`, rounded up to a millisecond.
pub(super) fn wait(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let millis = u16::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut fds, PollTimeout::from(millis)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back_what_it_wrote() {
        for order in
            [GuardOrder::Renew(true), GuardOrder::Renew(false), GuardOrder::Stop {}, GuardOrder::Kill {}]
        {
            assert_eq!(serde_json::from_slice::<GuardOrder>(order.line()).unwrap(), order);
        }
    }
}
