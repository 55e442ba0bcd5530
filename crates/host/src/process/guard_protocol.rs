//! The lifeline between a replica and the guard of one worker, and what they say over it.
//!
//! Owns the words (one JSON object a line, each way) and the guard's end. Both ends are the same
//! build, so nothing here is a contract. Its closing is itself a message: the other one is dead.

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

/// The number under which the guard finds its end.
pub const GUARD_FD: i32 = 3;

/// How long a guard waits for the next piece of its plan.
const PLAN_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest plan, in bytes.
const PLAN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The first line to the guard: what to run and how far to let it go.
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
    /// Who the agent runs as, where not as its guard.
    pub user: Option<User>,
    /// SIGTERM → SIGKILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// How long the replica may be silent, in milliseconds.
    pub silence_max_ms: u64,
}

/// Every later line to the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardOrder {
    /// The replica's proof of life, and whether the worker has something to do.
    Renew(bool),
    /// SIGTERM to the agent's group; SIGKILL to the tree after the grace.
    Stop {},
    /// SIGKILL to the tree.
    Kill {},
}

impl GuardOrder {
    /// The order as its line, the newline included.
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
        /// Its process id, which is its group's and session's too.
        pid: i32,
        /// Why it is not in the control group that was made for it, where that is so.
        unbound: Option<String>,
    },
    /// The agent could not be started.
    Refused(SpawnRefusal),
    /// The agent is gone, and all that it started.
    Exited(AgentEnd),
}

/// Why an agent could not be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnRefusal {
    /// What kind of obstacle.
    pub kind: SpawnObstacle,
    /// The system's error number, where it gave one.
    pub errno: Option<i32>,
    /// For operators.
    pub detail: String,
}

/// What stands in an agent's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnObstacle {
    /// The program, or the interpreter that it names, does not exist.
    NotFound,
    /// It exists and may not be run.
    NotExecutable,
    /// The working directory cannot be entered.
    Workdir,
    /// Anything else.
    Other,
}

/// How an agent ended. At most one of `code` and `signal`; at most one of the claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEnd {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it, or its tree, went over its memory.
    #[serde(default)]
    pub oom: bool,
    /// Whether its tree had too many processes.
    #[serde(default)]
    pub processes: bool,
    /// Whether the replica was silent for too long.
    #[serde(default)]
    pub silence: bool,
}

/// The guard's end of the lifeline, and what has come through it.
pub(super) struct GuardEnd {
    socket: UnixStream,
    inbox: Vec<u8>,
}

impl GuardEnd {
    /// Takes the lifeline, and closes every other descriptor that came along by accident: the agent
    /// must inherit its three pipes and nothing else.
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
        // SAFETY: the replica made it for this process, and nothing else here knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(GUARD_FD) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(GuardEnd { socket: UnixStream::from(fd), inbox: Vec::new() })
    }

    /// The plan; `None` when the replica left before it said one. Later reads do not block.
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

    /// Reads what is there; false when the replica is gone.
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

    /// Says something to the replica. Its buffer is empty, so these few bytes always fit.
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

/// Waits until one of `fds` has something, or for `timeout`, rounded up to a millisecond.
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
