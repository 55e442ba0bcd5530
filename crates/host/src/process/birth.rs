//! The birth of an agent: from the guard's plan to a program that runs.
//!
//! Owns what a child does before it becomes the agent: a session of its own, another user where there is one,
//! the system's limits. Refuses to leave it anything of the guard's but three pipes.

use std::{
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Read},
    os::unix::{fs::fchown, process::CommandExt},
    process::{Child, Command},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid, setgid, setgroups, setsid, setuid, write},
};

use super::{
    cgroup::Group,
    guard_protocol::{Plan, SpawnObstacle, SpawnRefusal},
    user::User,
};

/// An agent that runs.
pub(super) struct Born {
    pub(super) agent: Child,
    pub(super) pid: Pid,
    /// Why it is not in the control group that was made for it, where that is so.
    pub(super) unbound: Option<String>,
}

/// Starts the agent in a session and group of its own.
pub(super) fn spawn(plan: &Plan) -> Result<Born, SpawnRefusal> {
    let refusal = |kind, why: io::Error, what: &str| SpawnRefusal {
        kind,
        errno: why.raw_os_error(),
        detail: format!("{what}: {why}"),
    };
    let Some((program, arguments)) = plan.command.split_first() else {
        let why = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(refusal(SpawnObstacle::Other, why, "the command is empty"));
    };
    // Entered here and not by the child, so that a bad directory is not taken for a bad program.
    std::env::set_current_dir(&plan.cwd).map_err(|why| {
        refusal(SpawnObstacle::Workdir, why, &format!("cannot enter {}", plan.cwd.display()))
    })?;
    if let Some(user) = plan.user {
        give_pipes(user).map_err(|why| refusal(SpawnObstacle::Other, why, "cannot give the pipes away"))?;
    }
    let opened = plan.group.as_ref().map(Door::open).transpose();
    let told = opened.as_ref().err().map(ToString::to_string);
    let (door, answer) = opened.ok().flatten().unzip();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&plan.env);
    let (guard, user) = (Pid::this(), plan.user);
    let file_bytes = plan.file_bytes;
    #[allow(unsafe_code, reason = "what a child does before it becomes the agent has no safe form")]
    // SAFETY: this process has one thread, so the child may do whatever its parent may.
    unsafe {
        command.pre_exec(move || {
            if let Some(door) = &door {
                door.enter();
            }
            Ok(become_agent(guard, user, file_bytes)?)
        });
    }
    let agent = command.spawn().map_err(|why| {
        let kind = match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR) => SpawnObstacle::NotFound,
            Some(Errno::EACCES | Errno::ENOEXEC | Errno::EPERM) => SpawnObstacle::NotExecutable,
            _ => SpawnObstacle::Other,
        };
        refusal(kind, why, &format!("cannot run `{program}`"))
    })?;
    // With this process's end of the answer, which the agent's has closed with its start.
    drop(command);
    let pid = i32::try_from(agent.id()).unwrap_or(i32::MAX);
    // When the machine runs out of memory, workers go before replicas.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "500");
    let unbound = told.or_else(|| answer.and_then(refused_by));
    Ok(Born { agent, pid: Pid::from_raw(pid), unbound })
}

/// The way into a control group, for a child that becomes the agent. A closed one keeps no agent from its start.
struct Door {
    entry: File,
    /// Takes the error, if there is one.
    answer: PipeWriter,
}

impl Door {
    fn open(group: &Group) -> io::Result<(Door, PipeReader)> {
        let (reader, answer) = io::pipe()?;
        Ok((Door { entry: group.entry()?, answer }, reader))
    }

    /// Before all else: what the agent allocates from here on is the group's. Allocates nothing itself.
    fn enter(&self) {
        if let Err(errno) = write(&self.entry, b"0") {
            let _ = write(&self.answer, &(errno as i32).to_ne_bytes());
        }
    }
}

/// Why the child could not enter; `None` where it did.
fn refused_by(mut answer: PipeReader) -> Option<String> {
    let mut errno = [0; size_of::<i32>()];
    answer.read_exact(&mut errno).ok()?;
    Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)).to_string())
}

fn become_agent(guard: Pid, user: Option<User>, file_bytes: u64) -> nix::Result<()> {
    setsid()?;
    if let Some(user) = user {
        setgroups(&[user.as_gid()])?;
        setgid(user.as_gid())?;
        setuid(user.as_uid())?;
        give_up_ambient()?;
    }
    // After the change of user, which forgets it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != guard {
        return Err(Errno::ESRCH);
    }
    // No program that it starts makes it more than it is: neither `sudo` nor a file with capabilities.
    prctl::set_no_new_privs()?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        #[allow(unsafe_code, reason = "nix calls every change of a disposition unsafe")]
        // SAFETY: the default disposition runs no code of ours.
        unsafe {
            sigaction(signal, &default)?;
        }
    }
    SigSet::empty().thread_set_mask()?;
    // None on address space: stacks of threads and the heaps of runtimes reserve gigabytes that they never touch. What
    // is resident is for the control group and the guard's looks.
    bound(Resource::RLIMIT_FSIZE, file_bytes)?;
    // What a worker knows must not be left on a disk.
    bound(Resource::RLIMIT_CORE, 0)
}

/// Gives up the capabilities that would outlive a change of user, and a program's start.
fn give_up_ambient() -> nix::Result<()> {
    use nix::libc::{PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, prctl};
    #[allow(unsafe_code, reason = "nix has no call for this")]
    // SAFETY: a system call with numbers alone.
    let done = unsafe { prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Errno::result(done).map(drop)
}

/// Lowers a limit, unless it is lower already.
fn bound(resource: Resource, max: u64) -> nix::Result<()> {
    let (_, hard) = getrlimit(resource)?;
    let max = max.min(hard);
    setrlimit(resource, max, max)
}

/// Makes the agent's pipes its user's, so that programs can open `/dev/stderr` and its like.
fn give_pipes(user: User) -> io::Result<()> {
    fchown(io::stdin(), Some(user.uid), Some(user.gid))?;
    fchown(io::stdout(), Some(user.uid), Some(user.gid))?;
    fchown(io::stderr(), Some(user.uid), Some(user.gid))
}

/// Lets go of the agent's pipes, so that the replica sees them close when the agent closes them.
pub(super) fn release_pipes() -> io::Result<()> {
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    // The workspace may be removed, or its disk unmounted, while the guard still runs.
    std::env::set_current_dir("/")
}
