//! One worker process, as its parent program sees it: started, written to, read, stopped.
//!
//! Owns this program's ends of the pipes, and of the lifeline to the worker's guard ([`super::guard`]). Loses no
//! last message (I7): an exit is reported after everything the worker wrote. Bounded: while nobody reads, the
//! worker's pipe fills and the worker blocks; a worker that does not read is reported as `Stuck`. Dropping a
//! [`Process`] ends the worker and everything it started.

use std::{
    io::Write,
    net::Shutdown,
    os::unix::net::UnixStream as Socket,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncWriteExt, BufReader, Lines as Reports},
    net::UnixStream,
    process::{Child, ChildStdin, ChildStdout},
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::FramedRead;

use super::{
    cgroup::{self, HeldGroup},
    exit::{Exit, ExitReport, leak_timeout},
    guard_protocol::{AgentEnd, GuardOrder, Report},
    proc_tree,
    spawn::{Launch, Launched, MARK, StartError},
    stderr::{self, StderrTail},
    strays,
};
use crate::{
    protocol::{
        codec::{Fault, LINE_BYTES_MAX, Lines, ProtocolError},
        messages::{FromWorker, ToWorker},
    },
    task::{Supervisor, TaskKind},
};
use lastword_words::failure::Code;

/// Time for the guard to exit once its work is done; longer than the guard's own bound on ending a tree.
const GUARD_LEAVE_TIMEOUT: Duration = Duration::from_secs(7);

/// Pause between the `shutdown` message and SIGTERM.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// How long the processes of a killed guard are searched for.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(5);

/// One worker process.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    inlet: Inlet,
    /// `None` once stdout is closed.
    stdout: Option<FramedRead<ChildStdout, Lines>>,
    orders: Arc<Orders>,
    exit: watch::Receiver<Option<Exit>>,
    /// When to give up on an exited worker's stdout.
    leak_ends: Option<Instant>,
    stderr: StderrTail,
    /// Lines on stdout before `ready` that were not messages.
    strays: usize,
}

/// What [`Process::recv`] returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A message.
    Message(FromWorker),
    /// A line that is not a message. Later lines can still be read.
    Protocol(ProtocolError),
    /// The worker closed its output; it may still run. Reported once.
    Closed,
    /// The worker and everything it started are gone. From now on nothing else is returned.
    Exited(Exit),
    /// A remote worker is gone, for this reason.
    Gone(ExitReport),
}

/// Why a message was not sent. No part of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The worker does not read its stdin.
    #[error("the worker does not read what it is sent")]
    Stuck,
    /// The worker closed its stdin or has exited.
    #[error("the worker can no longer be reached")]
    Closed,
    /// The message is longer than a line may be.
    #[error("the message is longer than a line may be")]
    TooLong,
    /// The message cannot be encoded as JSON; a bug of the gateway.
    #[error("the message could not be written")]
    Unwritable,
}

/// The message of a turn whose worker does not read its input.
pub const UNREAD: &str = "The worker handling your request does not read its input.";

impl SendError {
    /// Code and message of a turn that did not reach its worker.
    pub fn of_a_turn(self) -> (Code, &'static str) {
        match self {
            SendError::TooLong => (Code::InputTooLong, Code::InputTooLong.message()),
            _ => (Code::WorkerExited, "The worker handling your request could not be reached."),
        }
    }
}

impl Process {
    /// Starts a worker and waits, at most 10 s, until its program runs; the worker need not be ready yet. Dropping
    /// the future leaves nothing behind.
    pub async fn start(supervisor: &Supervisor, launch: Launch) -> Result<Process, StartError> {
        let (memory, processes, unread_max) = (launch.memory, launch.processes, launch.unread_max);
        let Launched { pid, mark, is_apart, group, guard, stdin, stdout, stderr, socket, reports } =
            launch.start().await?;
        let (exited, exit) = watch::channel(None);
        let (queue, unread) = mpsc::channel(unread_max);
        let tail = StderrTail::default();
        let left = (pid, (!is_apart).then_some(mark), group);
        let tell = move |told| _ = exited.send_replace(Some(Exit::new(told, memory, processes)));
        let watching = watch_guard(guard, reports, left, tell);
        supervisor.spawn(TaskKind::Worker, format!("worker {pid} guard"), watching);
        supervisor.spawn(TaskKind::Worker, format!("worker {pid} stdin"), write(stdin, unread, exit.clone()));
        let draining = stderr::drain(stderr, tail.writer(), pid, exit.clone());
        supervisor.spawn(TaskKind::Worker, format!("worker {pid} stderr"), draining);
        Ok(Process {
            pid,
            inlet: Inlet(queue),
            stdout: Some(FramedRead::new(stdout, Lines::default())),
            orders: Arc::new(Orders { socket, pid }),
            exit,
            leak_ends: None,
            stderr: tail,
            strays: 0,
        })
    }

    /// The worker's process id; also the id of its group and session.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Queues a message for the worker. Never blocks.
    pub fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        self.inlet.send(message)
    }

    /// A handle to the worker's queue.
    pub fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }

    /// The worker's next message, or its end. Cancel-safe, without a deadline. While `recv` is not called the
    /// worker blocks once its pipe (64 KiB) is full.
    pub async fn recv(&mut self) -> Heard {
        if let Some(stdout) = &mut self.stdout {
            tokio::select! {
                // Output comes before the exit.
                biased;
                said = stdout.next() => match said {
                    Some(Ok(Ok(message))) => return Heard::Message(message),
                    Some(Ok(Err(error))) if error.fault != Fault::Unfinished => return Heard::Protocol(error),
                    Some(Ok(Err(cut_off))) => {
                        let line = cut_off.excerpt;
                        tracing::warn!(pid = self.pid, line, "a worker ended in the middle of a line");
                    }
                    Some(Err(_)) | None => {}
                },
                () = leak_timeout(&mut self.exit, &mut self.leak_ends) => {
                    tracing::warn!(pid = self.pid, "another process holds a dead worker's stdout open");
                }
            }
            self.stdout = None;
            return Heard::Closed;
        }
        Heard::Exited(self.ended().await)
    }

    /// A handle that renews the lifeline of the worker's guard.
    pub fn renewer(&self) -> Renewer {
        Renewer(Arc::downgrade(&self.orders))
    }

    /// Asks the worker to end: SIGTERM now, SIGKILL to its whole tree after the grace period.
    pub fn stop(&self) {
        self.order(GuardOrder::Stop {});
    }

    /// Ends the worker: `shutdown`, then SIGTERM, then SIGKILL.
    pub async fn end(&mut self) -> Exit {
        // A worker that cannot receive the message gets SIGTERM at once.
        if self.send(&ToWorker::Shutdown).is_ok() {
            let _ = timeout(SHUTDOWN_GRACE, self.ended()).await;
        }
        self.stop();
        self.ended().await
    }

    /// Whether the process exists; its guard may not have reported its exit yet.
    pub fn is_there(&self) -> bool {
        !proc_tree::is_dead(self.pid)
    }

    /// Kills the worker and everything it started.
    pub fn kill(&self) {
        self.order(GuardOrder::Kill {});
    }

    fn order(&self, order: GuardOrder) {
        if self.exit.borrow().is_none() && !self.orders.give(order) {
            // The guard does not read: kill the process group directly.
            self.orders.kill_group();
        }
    }

    /// Waits until the worker and everything it started are gone and its stderr is read. Unread output stays in
    /// [`Process::recv`]. Cancel-safe.
    pub async fn ended(&mut self) -> Exit {
        let exit = match self.exit.wait_for(Option::is_some).await {
            Ok(told) => *told,
            Err(_) => None,
        };
        self.stderr.is_whole().await;
        exit.unwrap_or_else(|| Exit::new(None, lastword_words::units::Size(0), 0))
    }

    /// The last 16 KiB of its log: stderr, and stdout before `ready`.
    pub fn stderr_tail(&self) -> String {
        self.stderr.text()
    }

    /// Adds a line from stdout to the log: it came before `ready` and is not a message.
    pub(super) fn note_stray(&mut self, line: &str) {
        self.strays += 1;
        tracing::debug!(pid = self.pid, line, "worker stdout, before it was ready");
        self.stderr.note(line);
    }

    /// The number of such lines.
    pub(super) fn strays(&self) -> usize {
        self.strays
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Closing our descriptor is not enough, since the guard's watcher holds a copy.
        let _ = self.orders.socket.shutdown(Shutdown::Both);
    }
}

/// A handle to a worker's queue. Cheap to clone. After the worker's end it returns `Closed`.
#[derive(Debug, Clone)]
pub struct Inlet(mpsc::Sender<Vec<u8>>);

impl Inlet {
    /// Queues a message. Never blocks.
    pub fn send(&self, message: &ToWorker) -> Result<(), SendError> {
        self.send_line(message.to_line().map_err(|_| SendError::Unwritable)?)
    }

    /// Queues an encoded message. Its last byte is a newline, and its only one.
    pub fn send_line(&self, line: Vec<u8>) -> Result<(), SendError> {
        // The protocol's limit, for both directions. The newline does not count.
        if line.len() > LINE_BYTES_MAX + 1 {
            return Err(SendError::TooLong);
        }
        self.0.try_send(line).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => SendError::Stuck,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }
}

/// A handle that renews the lifeline of a worker's guard. Cheap to clone. Does nothing after the worker's end.
#[derive(Debug, Clone)]
pub struct Renewer(Weak<Orders>);

impl Renewer {
    /// Tells the guard that this replica lives, and whether the worker has a turn. Never blocks.
    pub fn renew(&self, is_busy: bool) {
        if let Some(orders) = self.0.upgrade() {
            // If the socket is full the guard has plenty of renewals to read.
            orders.give(GuardOrder::Renew(is_busy));
        }
    }
}

/// The lifeline to a worker's guard.
#[derive(Debug)]
struct Orders {
    /// Non-blocking.
    socket: Socket,
    pid: i32,
}

impl Orders {
    /// Sends an order. Returns whether the guard will receive it.
    fn give(&self, order: GuardOrder) -> bool {
        let line = order.line();
        matches!((&self.socket).write(line), Ok(n) if n == line.len())
    }

    fn kill_group(&self) {
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

/// Waits for the guard's last report, passes it on, and waits for the guard to exit.
async fn watch_guard(
    mut guard: Child,
    mut reports: Reports<BufReader<UnixStream>>,
    (pid, mark, group): (i32, Option<String>, Option<HeldGroup>),
    tell: impl FnOnce(Option<AgentEnd>),
) {
    let mut told = None;
    while let Ok(Some(line)) = reports.next_line().await {
        if let Ok(Report::Exited(ended)) = serde_json::from_str(&line) {
            told = Some(ended);
            break;
        }
    }
    let left = timeout(GUARD_LEAVE_TIMEOUT, guard.wait()).await;
    if !matches!(left, Ok(Ok(status)) if status.success()) {
        tracing::warn!(pid, ?left, "a worker's guard failed; what is left of the worker is killed");
        let _ = guard.start_kill();
        match mark {
            Some(mark) => end_orphans(pid, mark).await,
            // The namespace ends with the guard, after every process in it.
            None => drop(timeout(ORPHANS_TIMEOUT, guard.wait()).await),
        }
    }
    tell(told);
    cgroup::clear(group).await;
}

/// Kills what a killed guard left behind. The agent died with the guard; its descendants are found by their group,
/// by their mark, and among the orphans adopted by this process.
async fn end_orphans(pid: i32, mark: String) {
    let until = Instant::now() + ORPHANS_TIMEOUT;
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    loop {
        let mark = mark.clone();
        // Reads every process of the machine, so it runs outside the async runtime.
        let hunt =
            tokio::task::spawn_blocking(move || proc_tree::kill_marked(MARK, &mark) + strays::kill_all());
        if hunt.await.unwrap_or(0) == 0 || Instant::now() >= until {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Writes the queue to the worker's stdin until the queue or the pipe is closed.
async fn write(
    mut stdin: ChildStdin,
    mut unread: mpsc::Receiver<Vec<u8>>,
    mut exit: watch::Receiver<Option<Exit>>,
) {
    let writing = async {
        while let Some(line) = unread.recv().await {
            if stdin.write_all(&line).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        // If another process still reads a dead worker's stdin, it is not the worker.
        _ = exit.wait_for(Option::is_some) => {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_hunt_for_orphans_leaves_the_runtimes_thread_to_others() {
        // A group that nobody has.
        let hunt = end_orphans(i32::MAX, "nobody's".to_owned());
        tokio::pin!(hunt);
        assert!((&mut hunt).now_or_never().is_none(), "it read all of /proc before it let go");
        hunt.await;
    }
}
