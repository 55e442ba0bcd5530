//! The supervisor: every task of this process, what its end means, and the two ways to stop.
//!
//! Owns `tokio::spawn`, the soft and the hard stop, and the board of what each task is doing. Loses no panic: a
//! panic drains the whole replica, and the process exits with an error. Never aborts a task, since an aborted task
//! could owe a last word; tasks watch the two tokens themselves.
//!
//! ```text
//! living ──soft: take on nothing new──► draining ──hard: end now──► ending ──► ended
//!    └── a panic, or the early end of a `TaskKind::Replica` task, is a soft stop ──┘
//! ```

mod aside;

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::aside::aside;

/// Starts tasks, stops them, and knows what they are doing. Clones share one supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<SupervisorParts>);

#[derive(Debug)]
struct SupervisorParts {
    tracker: TaskTracker,
    soft: CancellationToken,
    hard: CancellationToken,
    panicked: OnceLock<String>,
    ended_early: OnceLock<String>,
    board: watch::Sender<Board>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Supervisor(Arc::new(SupervisorParts {
            tracker: TaskTracker::new(),
            // A child token: a hard stop is a soft stop too.
            soft: hard.child_token(),
            hard,
            panicked: OnceLock::new(),
            ended_early: OnceLock::new(),
            board: watch::Sender::new(Board::default()),
        }))
    }

    /// Starts a task. `kind` decides what its end means. `name` is its line on the board; tasks of one name share
    /// a line. Needs a tokio runtime.
    #[allow(clippy::disallowed_methods, reason = "this is the home of spawning")]
    pub fn spawn(
        &self,
        kind: TaskKind,
        name: impl Into<Cow<'static, str>>,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let line = BoardShare::write(self, kind, name.into());
        let task = async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            line.settle(outcome);
        };
        // Not kept: the tracker waits for the task.
        drop(tokio::spawn(self.0.tracker.track_future(task)));
    }

    /// The soft stop, "take on nothing new": cancelled when this replica drains.
    pub fn soft(&self) -> &CancellationToken {
        &self.0.soft
    }

    /// The hard stop, "end now": cancelled when the drain is over or cut short. Implies the soft stop.
    pub fn hard(&self) -> &CancellationToken {
        &self.0.hard
    }

    /// Waits until every task has ended. Needs a time limit: a task that ignores both stops never ends.
    pub async fn ended(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// The first panic of any task, as `name: message`. The process must exit with an error.
    pub fn panicked(&self) -> Option<String> {
        self.0.panicked.get().cloned()
    }

    /// The first [`TaskKind::Replica`] task that ended before a stop. The process must exit with an error.
    pub fn ended_early(&self) -> Option<String> {
        self.0.ended_early.get().cloned()
    }

    /// What every living task is doing now.
    pub fn board(&self) -> Board {
        self.0.board.borrow().clone()
    }

    /// Sets the state on the line of `name`. Does nothing without a living task of that name, so a late report
    /// leaves no line behind. An unchanged state keeps its time.
    pub fn report(&self, name: &str, state: &str) {
        self.0.board.send_if_modified(|board| match board.lines.get_mut(name) {
            Some(entry) if entry.state != state => {
                entry.state = state.to_owned();
                entry.since = Instant::now();
                true
            }
            _ => false,
        });
    }

    /// Waits until the board satisfies `wanted`. Needs a time limit: it may never do so.
    pub async fn until(&self, mut wanted: impl FnMut(&Board) -> bool) {
        // Cannot fail: `self` keeps the sender alive.
        let _ = self.0.board.subscribe().wait_for(|board| wanted(board)).await;
    }
}

/// What a task is for, which decides what its end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// The replica needs it: its end before a stop drains the replica.
    Replica,
    /// Runs one turn.
    Turn,
    /// Serves one client.
    Client,
    /// Serves one worker.
    Worker,
}

/// What the end of a task before a stop means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnd {
    /// Its work is done.
    Done,
    /// The replica is incomplete: a soft stop.
    Drains,
}

impl TaskKind {
    /// The kind's name in logs and on the board.
    pub const fn as_str(self) -> &'static str {
        match self {
            TaskKind::Replica => "replica",
            TaskKind::Turn => "turn",
            TaskKind::Client => "client",
            TaskKind::Worker => "worker",
        }
    }

    /// What an end before a stop means. A panic always drains, whatever the kind.
    pub const fn ending(self) -> TaskEnd {
        match self {
            TaskKind::Replica => TaskEnd::Drains,
            TaskKind::Turn | TaskKind::Client | TaskKind::Worker => TaskEnd::Done,
        }
    }

    /// What a panic leaves behind and who handles it, for the log.
    pub const fn left_behind(self) -> &'static str {
        match self {
            TaskKind::Replica => {
                "a replica with a missing task: the replica drains, and other replicas take over"
            }
            TaskKind::Turn => "a turn without a task: its deadline closes the turn",
            TaskKind::Client => "a closed connection: the client reconnects with its cursor",
            TaskKind::Worker => "a process without a supervisor: the process dies with this replica",
        }
    }
}

/// What every living task is doing, by name.
#[derive(Debug, Clone, Default)]
pub struct Board {
    lines: BTreeMap<Cow<'static, str>, BoardEntry>,
}

/// One line of the board.
#[derive(Debug, Clone)]
pub struct BoardEntry {
    /// What the tasks of this name are for.
    pub kind: TaskKind,
    /// The last reported state; `running` before the first report.
    pub state: String,
    /// When this state was first reported.
    pub since: Instant,
    /// The number of living tasks on this line.
    pub tasks: usize,
}

impl BoardEntry {
    /// How long the state has been unchanged.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Board {
    /// The line of `name`, while a task of that name lives.
    pub fn get(&self, name: &str) -> Option<&BoardEntry> {
        self.lines.get(name)
    }

    /// The state on the line of `name`.
    pub fn state(&self, name: &str) -> Option<&str> {
        self.get(name).map(|entry| entry.state.as_str())
    }

    /// All lines, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BoardEntry)> {
        self.lines.iter().map(|(name, entry)| (name.as_ref(), entry))
    }

    /// The number of living tasks of this kind.
    pub fn count(&self, kind: TaskKind) -> usize {
        self.lines.values().filter(|entry| entry.kind == kind).map(|entry| entry.tasks).sum()
    }
}

/// One task's share of its line. Dropping it removes the share, also if the runtime drops the task.
struct BoardShare {
    supervisor: Supervisor,
    kind: TaskKind,
    name: Cow<'static, str>,
}

impl BoardShare {
    fn write(supervisor: &Supervisor, kind: TaskKind, name: Cow<'static, str>) -> Self {
        supervisor.0.board.send_modify(|board| {
            let fresh = || BoardEntry { kind, state: "running".to_owned(), since: Instant::now(), tasks: 0 };
            board.lines.entry(name.clone()).or_insert_with(fresh).tasks += 1;
        });
        BoardShare { supervisor: supervisor.clone(), kind, name }
    }

    /// Acts on the task's end, before its line disappears.
    fn settle(self, outcome: Result<(), Box<dyn Any + Send>>) {
        let SupervisorParts { soft, panicked, ended_early, .. } = &*self.supervisor.0;
        let (kind, name) = (self.kind.as_str(), self.name.as_ref());
        match outcome {
            Err(payload) => {
                let message = panic_message(payload.as_ref());
                tracing::error!(
                    kind,
                    task = name,
                    panic = message,
                    left_behind = self.kind.left_behind(),
                    "a task panicked: this replica drains"
                );
                // Only the first panic is kept; later ones are often its consequences.
                let _ = panicked.set(format!("{name}: {message}"));
                soft.cancel();
            }
            Ok(()) if self.kind.ending() == TaskEnd::Drains && !soft.is_cancelled() => {
                tracing::error!(kind, task = name, "a task ended before a stop: this replica drains");
                let _ = ended_early.set(name.to_owned());
                soft.cancel();
            }
            Ok(()) => {}
        }
    }
}

impl Drop for BoardShare {
    fn drop(&mut self) {
        self.supervisor.0.board.send_modify(|board| {
            if let Some(entry) = board.lines.get_mut(&self.name) {
                entry.tasks -= 1;
                if entry.tasks == 0 {
                    board.lines.remove(&self.name);
                }
            }
        });
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn soon(what: &str, wait: impl Future<Output = ()>) {
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    #[tokio::test]
    async fn a_panic_anywhere_is_a_soft_stop_that_names_its_task() {
        let supervisor = Supervisor::new();
        supervisor.spawn(TaskKind::Client, "client 7", async { panic!("boom {}", 1) });
        soon("the soft stop", supervisor.soft().cancelled()).await;
        supervisor.spawn(TaskKind::Turn, "turn", async { panic!("later") });
        soon("the end", supervisor.ended()).await;
        assert_eq!(supervisor.panicked().as_deref(), Some("client 7: boom 1"));
        assert_eq!(supervisor.ended_early(), None);
        assert!(!supervisor.hard().is_cancelled(), "turns still get their drain");
        assert_eq!(supervisor.board().iter().count(), 0);
    }

    #[tokio::test]
    async fn an_early_end_drains_the_replica_only_where_it_needs_the_task() {
        let supervisor = Supervisor::new();
        for kind in [TaskKind::Turn, TaskKind::Client, TaskKind::Worker] {
            supervisor.spawn(kind, kind.as_str(), async {});
        }
        soon("their end", supervisor.until(|board| board.iter().next().is_none())).await;
        assert!(!supervisor.soft().is_cancelled());

        supervisor.spawn(TaskKind::Replica, "presence", async {});
        soon("the soft stop", supervisor.soft().cancelled()).await;
        assert_eq!(supervisor.ended_early().as_deref(), Some("presence"));
        assert_eq!(supervisor.panicked(), None);
    }

    #[tokio::test]
    async fn an_end_after_the_stop_is_no_fault() {
        let supervisor = Supervisor::new();
        let (soft, hard) = (supervisor.soft().clone(), supervisor.hard().clone());
        supervisor.spawn(TaskKind::Replica, "dispatch", async move { soft.cancelled().await });
        supervisor.spawn(TaskKind::Replica, "presence", async move { hard.cancelled().await });
        supervisor.hard().cancel();
        soon("the end", supervisor.ended()).await;
        assert_eq!((supervisor.panicked(), supervisor.ended_early()), (None, None));
    }

    #[tokio::test]
    async fn the_board_tells_what_living_tasks_do_and_forgets_the_others() {
        let supervisor = Supervisor::new();
        let end = CancellationToken::new();
        for _ in 0..2 {
            let end = end.clone();
            supervisor.spawn(TaskKind::Client, "clients", async move { end.cancelled().await });
        }
        assert_eq!(supervisor.board().state("clients"), Some("running"));
        assert_eq!(supervisor.board().count(TaskKind::Client), 2);

        supervisor.report("clients", "following");
        let since = supervisor.board().get("clients").unwrap().since;
        supervisor.report("clients", "following");
        assert_eq!(supervisor.board().state("clients"), Some("following"));
        assert_eq!(supervisor.board().get("clients").unwrap().since, since);

        end.cancel();
        soon("their end", supervisor.ended()).await;
        supervisor.report("clients", "too late");
        assert_eq!(supervisor.board().iter().count(), 0);
    }

    #[test]
    fn a_task_that_the_runtime_drops_leaves_no_line() {
        let supervisor = Supervisor::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            supervisor.spawn(TaskKind::Replica, "stuck", std::future::pending());
        });
        assert_eq!(supervisor.board().count(TaskKind::Replica), 1);
        drop(runtime);
        assert_eq!(supervisor.board().count(TaskKind::Replica), 0);
    }
}
