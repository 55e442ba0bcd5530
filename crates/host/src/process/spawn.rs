//! Starts a worker process: workspace, environment, guard.
//!
//! Owns everything until the agent's program runs. Passes on nothing of this replica's environment, which holds
//! its secrets. Messages for clients contain no paths.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, AsRawFd, IntoRawFd},
        unix::net::UnixStream as Socket,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines as Reports},
    net::UnixStream,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    cgroup::{self, HeldGroup},
    guard_protocol::{GUARD_FD, Plan, Report, SpawnObstacle},
    namespace::{self, OWN_PROGRAM},
    strays,
    user::User,
    workspace,
};
use crate::descriptors::{self, Lack};
use lastword_words::units::Size;

/// Time limit from the first system call to a running program.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a failed guard's stderr is read, and how many bytes of it.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(500);
const COMPLAINT_BYTES_MAX: u64 = 2 * 1024;

/// Default limit on the size of a file that a worker writes.
pub const FILE_MAX: Size = Size::mib(8 * 1024);

/// The environment variable by which a worker's processes are found if their guard was killed.
pub(super) const MARK: &str = "LASTWORD_GUARD";

/// What to start, and its limits.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program and its arguments. A program without a `/` is looked up in `PATH`, a relative path in the
    /// workspace.
    pub command: Vec<String>,
    /// The agent's environment, added to a minimal one (`PATH`, `HOME`, `LANG`, `TERM`, and `LASTWORD_GUARD`,
    /// which cannot be overridden).
    pub env: BTreeMap<String, String>,
    /// Working directory and home. Created if missing, accessible by its owner only.
    pub workspace: PathBuf,
    /// Resident memory of the whole tree.
    pub memory: Size,
    /// Processes in the tree, the agent's own included.
    pub processes: u32,
    /// The largest file that a process of the tree may write.
    pub file_max: Size,
    /// The user to run as, as [`User::find`] reads it; `None`: this process's own.
    pub user: Option<String>,
    /// Whether the worker gets its own PID namespace, if the machine allows it.
    pub namespace: bool,
    /// Whether it gets a control group of its own, where this machine gives one.
    pub cgroup: bool,
    /// Time from SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// How long this replica may go without a renewal before the guard ends the worker.
    pub silence_max: Duration,
    /// Messages that may wait for a worker that does not read.
    pub unread_max: usize,
    /// The executable that acts as the guard when called with `__guard`.
    pub guard: PathBuf,
}

impl Launch {
    /// A launch in `workspace` as this process's own user: 1 GiB of memory, 64 processes, files of 8 GiB, 5 s of
    /// grace, 10 s of silence, 16 unread messages.
    pub fn new(command: Vec<String>, workspace: PathBuf) -> Self {
        Launch {
            command,
            env: BTreeMap::new(),
            workspace,
            memory: Size::mib(1024),
            processes: 64,
            file_max: FILE_MAX,
            user: None,
            namespace: true,
            cgroup: true,
            stop_grace: Duration::from_secs(5),
            silence_max: Duration::from_secs(10),
            unread_max: 16,
            guard: PathBuf::from(OWN_PROGRAM),
        }
    }

    pub(super) async fn start(self) -> Result<Launched, StartError> {
        let user = self
            .user
            .as_deref()
            .map(User::find)
            .transpose()
            .map_err(|why| StartError::new(StartErrorKind::Other, format!("worker_user {why}")))?;
        let workspace = prepare(self.workspace.clone(), user).await?;
        let (ours, theirs) = Socket::pair().map_err(StartError::other)?;
        let is_apart = self.namespace && has_namespace(self.guard.clone()).await;
        let mut guard = spawn_guard(&self.guard, theirs, is_apart).map_err(StartError::other)?;
        ours.set_nonblocking(true).map_err(StartError::other)?;
        let socket = ours.try_clone().map_err(StartError::other)?;
        let lifeline = UnixStream::from_std(ours).map_err(StartError::other)?;
        let mut reports = BufReader::new(lifeline).lines();
        // Random, so it reveals nothing about the replica.
        let mark = format!("{:032x}", rand::random::<u128>());
        let held = if self.cgroup { cgroup::make(self.memory).await } else { None };
        let group = held.as_ref().map(|held| held.group().clone());
        let plan = Plan { group, ..self.plan(workspace, user, mark.clone()) };
        let introduction = introduce(&mut reports, plan);
        let introduced = timeout(START_TIMEOUT, introduction).await.unwrap_or_else(|_| {
            Err(StartError::new(StartErrorKind::Other, "the guard did not report in time".to_owned()))
        });
        let pid = match introduced {
            Ok(pid) => pid,
            Err(mut error) => {
                error.detail.push_str(&complaint(&mut guard).await);
                return Err(error);
            }
        };
        let pipes = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(StartError::new(StartErrorKind::Other, "a pipe is missing".to_owned()));
        };
        Ok(Launched { pid, mark, is_apart, group: held, guard, stdin, stdout, stderr, socket, reports })
    }

    fn plan(self, workspace: PathBuf, user: Option<User>, mark: String) -> Plan {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), path),
            ("HOME".to_owned(), workspace.display().to_string()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("TERM".to_owned(), "dumb".to_owned()),
            // Python buffers 8 KiB of output to a pipe, so its `ready` would never arrive.
            ("PYTHONUNBUFFERED".to_owned(), "1".to_owned()),
        ]);
        env.extend(self.env);
        env.insert(MARK.to_owned(), mark);
        Plan {
            command: self.command,
            env,
            cwd: workspace,
            memory_bytes: self.memory.0,
            group: None,
            processes_max: self.processes,
            file_bytes: self.file_max.0,
            user,
            stop_grace_ms: millis(self.stop_grace),
            silence_max_ms: millis(self.silence_max),
        }
    }
}

/// A worker whose program runs.
pub(super) struct Launched {
    pub(super) pid: i32,
    /// The value of [`MARK`] in its processes' environment.
    pub(super) mark: String,
    /// Whether the guard's end ends all of its processes (a PID namespace).
    pub(super) is_apart: bool,
    /// Its control group.
    pub(super) group: Option<HeldGroup>,
    pub(super) guard: Child,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
    /// The lifeline, for orders; non-blocking.
    pub(super) socket: Socket,
    /// The same lifeline, for reports.
    pub(super) reports: Reports<BufReader<UnixStream>>,
}

/// Why a worker could not be started. Its text is for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// What failed.
    pub kind: StartErrorKind,
    /// For clients: no paths, no system errors.
    pub message: &'static str,
    /// For operators.
    pub detail: String,
    /// The resource this process is short of, if that is the cause.
    pub lack: Option<Lack>,
}

/// The kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartErrorKind {
    /// The workspace could not be created or entered.
    Workspace,
    /// The program, or its interpreter, does not exist.
    NotFound,
    /// The program may not be executed.
    NotExecutable,
    /// Anything else.
    Other,
}

impl StartError {
    fn new(kind: StartErrorKind, detail: String) -> Self {
        let message = match kind {
            StartErrorKind::Workspace => "The workspace of this agent's worker could not be prepared.",
            StartErrorKind::NotFound => "The program of this agent was not found.",
            StartErrorKind::NotExecutable => "The program of this agent cannot be executed.",
            StartErrorKind::Other => "The worker for this agent could not be started.",
        };
        StartError { kind, message, detail, lack: None }
    }

    fn other(why: io::Error) -> Self {
        StartError { lack: Lack::of(&why), ..StartError::new(StartErrorKind::Other, why.to_string()) }
    }
}

/// Creates the workspace if missing, on a blocking thread. Returns its absolute path.
async fn prepare(dir: PathBuf, user: Option<User>) -> Result<PathBuf, StartError> {
    let prepared = tokio::task::spawn_blocking(move || workspace::prepare(&dir, user)).await;
    prepared
        .unwrap_or_else(|why| Err(why.to_string()))
        .map_err(|detail| StartError::new(StartErrorKind::Workspace, detail))
}

/// Whether this machine allows namespaces; the first call takes some milliseconds.
async fn has_namespace(program: PathBuf) -> bool {
    tokio::task::spawn_blocking(move || namespace::is_available(program)).await.unwrap_or(false)
}

/// Starts the guard. Its stdio are the agent's pipes; it also gets its end of the lifeline.
fn spawn_guard(program: &Path, lifeline: Socket, is_apart: bool) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg0("lastword").arg("__guard").env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[allow(unsafe_code, reason = "a descriptor gets its number between fork and exec, or not at all")]
    // SAFETY: only async-signal-safe calls (setsid, setrlimit, dup2, fcntl), and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            // A session of its own: a Ctrl-C at the replica's terminal starts a drain, which the guard must
            // outlive.
            nix::unistd::setsid()?;
            // Restores the former descriptor limit for programs that use `select` or close every possible
            // descriptor.
            if let Some(limit) = descriptors::former() {
                descriptors::lower(limit)?;
            }
            if lifeline.as_raw_fd() == GUARD_FD {
                fcntl(lifeline.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
            } else {
                // Every other descriptor here closes at exec, so this number is free.
                let _ = nix::unistd::dup2_raw(&lifeline, GUARD_FD)?.into_raw_fd();
            }
            Ok(())
        });
    }
    // The guard's end of the lifeline must close here, with `command`, so that the guard's death is noticed.
    let spawn = move || if is_apart { namespace::spawn(command) } else { command.spawn() };
    strays::note_guard(spawn, Child::id)
}

/// Sends the guard its plan and waits until the agent runs. Returns the agent's process id.
async fn introduce(reports: &mut Reports<BufReader<UnixStream>>, plan: Plan) -> Result<i32, StartError> {
    let mut line = serde_json::to_vec(&plan).map_err(|why| StartError::other(why.into()))?;
    line.push(b'\n');
    reports.get_mut().get_mut().write_all(&line).await.map_err(StartError::other)?;
    let report = reports.next_line().await.map_err(StartError::other)?;
    match report.as_deref().map(serde_json::from_str) {
        Some(Ok(Report::Spawned { pid, unbound })) => {
            if let Some(why) = unbound {
                tracing::warn!(pid, why, "a worker is not in its control group: its memory is polled");
            }
            Ok(pid)
        }
        Some(Ok(Report::Refused(refusal))) => {
            let kind = match refusal.kind {
                SpawnObstacle::NotFound => StartErrorKind::NotFound,
                SpawnObstacle::NotExecutable => StartErrorKind::NotExecutable,
                SpawnObstacle::Workdir => StartErrorKind::Workspace,
                SpawnObstacle::Other => StartErrorKind::Other,
            };
            let why = refusal.errno.map(io::Error::from_raw_os_error);
            // Lack of memory may be the agent's own limit, which is in force when its program is loaded.
            let lack = why.and_then(|why| Lack::of(&why)).filter(|lack| *lack != Lack::Memory);
            Err(StartError { lack, ..StartError::new(kind, refusal.detail) })
        }
        other => {
            let detail = format!("the guard ended or spoke out of turn: {other:?}");
            Err(StartError::new(StartErrorKind::Other, detail))
        }
    }
}

/// The stderr of a guard that failed, for operators.
async fn complaint(guard: &mut Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = guard.stderr.take() {
        let _ = timeout(COMPLAINT_TIMEOUT, stderr.take(COMPLAINT_BYTES_MAX).read_to_end(&mut text)).await;
    }
    match String::from_utf8_lossy(text.trim_ascii()) {
        empty if empty.is_empty() => String::new(),
        said => format!("; the guard said: {said}"),
    }
}
