//! One worker process, as the program that started it sees it: started, spoken to, heard, stopped.
//!
//! Owns this program's ends of the pipes and of the lifeline to the worker's guard ([`super::guard`]). Refuses
//! to lose last words (I7): an exit is told after everything that was said before it. Refuses to
//! grow: who does not listen fills the worker's pipe and so holds the worker back; a worker that
//! does not listen is told of. Dropping a [`Process`] ends the worker and everything it started.

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
    task::{Kind, Supervisor},
};
use lastword_words::failure::Code;

/// How long the guard may take to leave once its work is done; above its own bound on a tree's end.
const GUARD_LEAVE_TIMEOUT: Duration = Duration::from_secs(7);

/// From `shutdown` to SIGTERM.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// How long the processes of a guard that was killed are hunted.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(5);

/// One worker process.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    inlet: Inlet,
    /// `None` once it has ended.
    stdout: Option<FramedRead<ChildStdout, Lines>>,
    orders: Arc<Orders>,
    exit: watch::Receiver<Option<Exit>>,
    /// When an exited worker's stdout is given up.
    leak_ends: Option<Instant>,
    stderr: StderrTail,
    /// Lines on stdout before it was ready that were no messages.
    strays: usize,
}

/// What [`Process::recv`] heard.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A message.
    Message(FromWorker),
    /// A line that is no message. Later lines can still be heard.
    Protocol(ProtocolError),
    /// It will say nothing more; it may still run. Told once.
    Closed,
    /// It is gone, with everything it started. From now on this is all there is to hear.
    Exited(Exit),
    /// A remote worker is gone, for this reason.
    Gone(ExitReport),
}

/// Why a message could not be sent. Nothing of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The worker does not read its stdin.
    #[error("the worker does not read what it is sent")]
    Stuck,
    /// The worker closed its stdin or is gone.
    #[error("the worker can no longer be reached")]
    Closed,
    /// The message is longer than a line may be.
    #[error("the message is longer than a line may be")]
    TooLong,
    /// The message is no JSON; a fault of the gateway's own.
    #[error("the message could not be written")]
    Unwritable,
}

/// What is said of a worker that does not take an order.
pub const UNREAD: &str = "The worker handling your request does not read its input.";

impl SendError {
    /// What to say of a turn that did not reach its worker.
    pub fn of_a_turn(self) -> (Code, &'static str) {
        match self {
            SendError::TooLong => (Code::InputTooLong, Code::InputTooLong.message()),
            _ => (Code::WorkerExited, "The worker handling your request could not be reached."),
        }
    }
}

impl Process {
    /// Starts a worker and waits until its program runs, 10 s at most. That it runs does not say
    /// that it is ready. Dropping the future leaves nothing behind.
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
        supervisor.spawn(Kind::Worker, format!("worker {pid} guard"), watching);
        supervisor.spawn(Kind::Worker, format!("worker {pid} stdin"), write(stdin, unread, exit.clone()));
        let draining = stderr::drain(stderr, tail.writer(), pid, exit.clone());
        supervisor.spawn(Kind::Worker, format!("worker {pid} stderr"), draining);
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

    /// The worker's process id, which is its group's and session's too.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Hands a message to the worker's queue. Never blocks.
    pub fn send(&mut self, message: &ToWorker) -> Result<(), SendError> {
        self.inlet.send(message)
    }

    /// The way to this worker's queue.
    pub fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }

    /// Waits for what the worker says or does next. Cancel-safe: nothing is lost when the future is
    /// dropped. Who does not call it holds the worker back once its pipe (64 KiB) is full. Has no
    /// deadline of its own.
    pub async fn recv(&mut self) -> Heard {
        if let Some(stdout) = &mut self.stdout {
            tokio::select! {
                // What was said comes before how it ended.
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
                    tracing::warn!(pid = self.pid, "a stranger holds a dead worker's stdout open");
                }
            }
            self.stdout = None;
            return Heard::Closed;
        }
        Heard::Exited(self.ended().await)
    }

    /// A handle that proves this replica's life to the worker's guard.
    pub fn renewer(&self) -> Renewer {
        Renewer(Arc::downgrade(&self.orders))
    }

    /// Asks the worker to end: SIGTERM now, SIGKILL to its whole tree after the grace.
    pub fn stop(&self) {
        self.order(GuardOrder::Stop {});
    }

    /// Ends the worker: asked, then told, then killed.
    pub async fn end(&mut self) -> Exit {
        // One that cannot be asked is told at once.
        if self.send(&ToWorker::Shutdown).is_ok() {
            let _ = timeout(SHUTDOWN_GRACE, self.ended()).await;
        }
        self.stop();
        self.ended().await
    }

    /// Whether the process is there; its guard may not have told yet that it is not.
    pub fn is_there(&self) -> bool {
        !proc_tree::is_dead(self.pid)
    }

    /// Ends the worker and everything it started, now.
    pub fn kill(&self) {
        self.order(GuardOrder::Kill {});
    }

    fn order(&self, order: GuardOrder) {
        if self.exit.borrow().is_none() && !self.orders.give(order) {
            // The guard does not listen, so it is done without: roughly, but at once.
            self.orders.kill_group();
        }
    }

    /// Waits until the worker and everything it started are gone, and its stderr is read. Says
    /// nothing of what it said before: that waits in [`Process::recv`]. Cancel-safe.
    pub async fn ended(&mut self) -> Exit {
        let exit = match self.exit.wait_for(Option::is_some).await {
            Ok(told) => *told,
            Err(_) => None,
        };
        self.stderr.is_whole().await;
        exit.unwrap_or_else(|| Exit::new(None, lastword_words::units::Size(0), 0))
    }

    /// The last 16 KiB of its log: what it wrote to stderr, and to stdout before it was ready.
    pub fn stderr_tail(&self) -> String {
        self.stderr.text()
    }

    /// A line on stdout, before it was ready, that is no message: it belongs to the log.
    pub(super) fn note_stray(&mut self, line: &str) {
        self.strays += 1;
        tracing::debug!(pid = self.pid, line, "worker stdout, before it was ready");
        self.stderr.note(line);
    }

    /// How many of them there were.
    pub(super) fn strays(&self) -> usize {
        self.strays
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not left to the descriptor's own end: the guard's watcher holds a copy of it.
        let _ = self.orders.socket.shutdown(Shutdown::Both);
    }
}

/// The way to a worker's queue. Clones are cheap; one that outlives its worker reaches nobody.
#[derive(Debug, Clone)]
pub struct Inlet(mpsc::Sender<Vec<u8>>);

impl Inlet {
    /// Hands a message to the worker's queue. Never blocks.
    pub fn send(&self, message: &ToWorker) -> Result<(), SendError> {
        self.send_line(message.to_line().map_err(|_| SendError::Unwritable)?)
    }

    /// The same with a message that is written already; its newline is the last byte, and the only one.
    pub fn send_line(&self, line: Vec<u8>) -> Result<(), SendError> {
        // The limit is the protocol's, so it holds for both sides. The newline does not count.
        if line.len() > LINE_BYTES_MAX + 1 {
            return Err(SendError::TooLong);
        }
        self.0.try_send(line).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => SendError::Stuck,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }
}

/// Proves this replica's life to a worker's guard. Clones are cheap; one that outlives its worker
/// does nothing.
#[derive(Debug, Clone)]
pub struct Renewer(Weak<Orders>);

impl Renewer {
    /// The replica lives, now; the worker has a turn, or none. Never blocks.
    pub fn renew(&self, is_busy: bool) {
        if let Some(orders) = self.0.upgrade() {
            // A guard that is too far behind to take one more has plenty of them to read.
            orders.give(GuardOrder::Renew(is_busy));
        }
    }
}

/// The way to a worker's guard.
#[derive(Debug)]
struct Orders {
    /// Does not block.
    socket: Socket,
    pid: i32,
}

impl Orders {
    /// Whether the guard will get it.
    fn give(&self, order: GuardOrder) -> bool {
        let line = order.line();
        matches!((&self.socket).write(line), Ok(n) if n == line.len())
    }

    fn kill_group(&self) {
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

/// Waits for the guard's last report, tells it, and sees the guard off.
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
        tracing::warn!(pid, ?left, "a worker's guard did not end as it should");
        let _ = guard.start_kill();
        match mark {
            Some(mark) => end_orphans(pid, mark).await,
            // Its namespace ends with it, and not before all that is in there.
            None => drop(timeout(ORPHANS_TIMEOUT, guard.wait()).await),
        }
    }
    tell(told);
    cgroup::clear(group).await;
}

/// Ends what a guard that was killed has left behind. Its death took the agent along; what the
/// agent started is found by its group and its mark, and by having come to this process.
async fn end_orphans(pid: i32, mark: String) {
    let until = Instant::now() + ORPHANS_TIMEOUT;
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    loop {
        let mark = mark.clone();
        // Reads every process of the machine, so not on a thread of the runtime.
        let hunt =
            tokio::task::spawn_blocking(move || proc_tree::kill_marked(MARK, &mark) + strays::kill_all());
        if hunt.await.unwrap_or(0) == 0 || Instant::now() >= until {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Writes the queue to the worker's stdin, until nobody writes or nobody reads.
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
        // The reader of a dead worker's stdin, if any, is not the worker.
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
