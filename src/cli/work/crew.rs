//! The crew: the worker processes of this host, one a conversation, or one for all.
//!
//! Owns which process serves which turn, how one is started, and the guards' proof of life: a host that is
//! gone, or stands still, takes its processes along.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    life,
    shared::{self, Shared},
    turn::Job,
    waits::Waits,
    words::Registered,
};
use crate::{
    agent::Scope,
    descriptors,
    failure::Code,
    id::ConversationId,
    task::{Kind, Supervisor},
    units::Size,
    worker::{
        process::{Launch, Process, Renewer},
        ready::{NotReady, lapsed, until_ready},
        slots::{Slot, Slots},
    },
};

/// Turns that may wait for a conversation's process; the gateway runs one at a time.
const JOBS_MAX: usize = 4;
/// How long a guard may go without a proof of life, and how often it gets one.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// Between two looks whether a process is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two tries of a start for which this host lacked something.
const LACK_PAUSE: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it finds in its environment.
    pub env: BTreeMap<String, String>,
    /// Where its workspaces are.
    pub data_dir: PathBuf,
    /// Who it runs as, where not as this host.
    pub user: Option<String>,
    /// Turns at once: those of a process that serves many.
    pub concurrency: usize,
}

/// The processes of this host.
#[derive(Debug)]
pub struct Crew {
    program: Program,
    supervisor: Supervisor,
    /// This host takes on nothing more.
    leaving: CancellationToken,
    lives: Mutex<HashMap<ConversationId, mpsc::Sender<Job>>>,
    shared: Mutex<Option<Shared>>,
    slots: Slots,
    /// Conversations whose process has nothing to do, since when, and the way to send it away.
    idle: Mutex<HashMap<ConversationId, (Instant, CancellationToken)>>,
    processes: Mutex<HashMap<i32, Held>>,
    waits: Waits,
}

/// What is held for a process, from its start to its end.
#[derive(Debug)]
struct Held {
    renewer: Renewer,
    slot: Slot,
}

/// A process that is not ready yet. Dropped with its start, it is held no more: nobody awaits its end.
struct Starting<'a> {
    crew: &'a Crew,
    pid: i32,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        lock(&self.crew.processes).remove(&self.pid);
    }
}

/// A conversation's process with nothing to do, from its beginning to its drop.
pub struct Idle<'a> {
    crew: &'a Crew,
    conversation: ConversationId,
    /// Cancelled once its slot is wanted for another.
    pub unwanted: CancellationToken,
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        lock(&self.crew.idle).remove(&self.conversation);
    }
}

impl Crew {
    /// A crew of `workers_max` processes at most.
    pub fn new(
        program: Program,
        supervisor: Supervisor,
        leaving: CancellationToken,
        workers_max: u32,
    ) -> Arc<Crew> {
        let (lives, shared) = (Mutex::default(), Mutex::default());
        let (slots, idle, processes) = (Slots::new(workers_max), Mutex::default(), Mutex::default());
        let waits = Waits::default();
        Arc::new(Crew { program, supervisor, leaving, lives, shared, slots, idle, processes, waits })
    }

    /// Finds the turn its process.
    pub fn place(self: &Arc<Self>, job: Job) {
        let crew = self.clone();
        if job.registered.scope == Scope::Shared {
            return self.supervisor.spawn(Kind::Turn, "turn", shared::serve(crew, job));
        }
        let conversation = job.offer.conversation_id;
        let mut lives = lock(&self.lives);
        let mut job = job;
        if let Some(life) = lives.get(&conversation) {
            match life.try_send(job) {
                Ok(()) => return,
                Err(TrySendError::Full(back) | TrySendError::Closed(back)) => job = back,
            }
        }
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        lives.insert(conversation, jobs.clone());
        drop(lives);
        let living = async move {
            life::live(&crew, job, inbox, jobs.downgrade()).await;
        };
        self.supervisor.spawn(Kind::Worker, "conversation", living);
    }

    /// A conversation has no process any more, where this was still its life.
    pub fn forget(&self, conversation: ConversationId, life: &mpsc::WeakSender<Job>) {
        let mut lives = lock(&self.lives);
        let is_it = life
            .upgrade()
            .is_some_and(|life| lives.get(&conversation).is_some_and(|known| known.same_channel(&life)));
        if is_it {
            lives.remove(&conversation);
        }
    }

    /// The shared process, as long as it takes turns.
    pub fn shared(&self) -> MutexGuard<'_, Option<Shared>> {
        lock(&self.shared)
    }

    /// The conversation's process has nothing to do from now on; `None` where its slot is wanted for another.
    pub fn idle(&self, conversation: ConversationId) -> Option<Idle<'_>> {
        let unwanted = CancellationToken::new();
        let mut idle = lock(&self.idle);
        if self.slots.is_short() {
            return None;
        }
        idle.insert(conversation, (Instant::now(), unwanted.clone()));
        drop(idle);
        Some(Idle { crew: self, conversation, unwanted })
    }

    /// Sends the process away that has been idle for longest; none where all have something to do.
    fn evict(&self) {
        let idle = lock(&self.idle);
        let wanted = idle.values().filter(|(_, unwanted)| !unwanted.is_cancelled());
        if let Some((_, unwanted)) = wanted.min_by_key(|(since, _)| *since) {
            unwanted.cancel();
        }
    }

    /// For how long pipes have waited.
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Cancelled once this host takes on nothing more.
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Starts a process, for a conversation or to be shared, and waits until it is ready. Dropping the future
    /// leaves nothing behind.
    pub async fn start(
        &self,
        registered: &Registered,
        conversation: Option<ConversationId>,
    ) -> Result<Process, NotReady> {
        let mut env = self.program.env.clone();
        env.insert("LASTWORD_AGENT".to_owned(), registered.agent.clone());
        let workspace = match conversation {
            Some(conversation) => {
                env.insert("LASTWORD_CONVERSATION_ID".to_owned(), conversation.to_string());
                self.program.data_dir.join(conversation.to_string())
            }
            None => self.program.data_dir.join("shared"),
        };
        let launch = Launch::new(self.program.command.clone(), workspace);
        // All of its turns may be told something in one moment.
        let turns = if conversation.is_none() { self.program.concurrency } else { 1 };
        let launch = Launch {
            env,
            memory: Size(registered.memory_bytes),
            processes: registered.processes,
            silence_max: SILENCE_MAX,
            user: self.program.user.clone(),
            unread_max: launch.unread_max + 2 * turns,
            ..launch
        };
        let until = Instant::now() + Duration::from_millis(registered.startup_ms);
        let in_time = timeout_at(until, self.launch(launch)).await;
        let (slot, mut process) = in_time.unwrap_or_else(|_| {
            Err(NotReady { message: Code::WorkerStartupFailed.message().to_owned(), detail: None })
        })?;
        let held = Held { renewer: process.renewer(), slot };
        lock(&self.processes).insert(process.pid(), held);
        let starting = Starting { crew: self, pid: process.pid() };
        let ready = timeout_at(until, until_ready(&mut process)).await;
        // From here on its end is awaited.
        std::mem::forget(starting);
        match ready.unwrap_or_else(|_| Err(lapsed(&process))) {
            Ok(()) => Ok(process),
            Err(why) => {
                self.kill(&mut process).await;
                Err(why)
            }
        }
    }

    /// Starts a program, once there is room for it.
    async fn launch(&self, launch: Launch) -> Result<(Slot, Process), NotReady> {
        let slot = self.slots.take(|| self.evict()).await;
        loop {
            match Process::start(&self.supervisor, launch.clone()).await {
                Ok(process) => {
                    descriptors::started();
                    tracing::info!(pid = process.pid(), "worker started");
                    return Ok((slot, process));
                }
                // This host's own want is nobody's failure: the turn's startup clock decides.
                Err(why) if let Some(lack) = why.lack => {
                    descriptors::lacked(lack);
                    tracing::warn!(
                        lack = lack.as_str(),
                        detail = why.detail,
                        "no process can be started yet"
                    );
                    sleep(LACK_PAUSE).await;
                }
                Err(why) => {
                    return Err(NotReady { message: why.message.to_owned(), detail: Some(why.detail) });
                }
            }
        }
    }

    /// Ends a process: asked, then told, then killed.
    pub async fn end(&self, process: &mut Process) {
        if let Some(held) = lock(&self.processes).get(&process.pid()) {
            held.slot.leave();
        }
        let exit = process.end().await;
        lock(&self.processes).remove(&process.pid());
        tracing::info!(pid = process.pid(), %exit, "worker ended");
    }

    /// Ends a process and everything it started, now.
    pub async fn kill(&self, process: &mut Process) {
        process.kill();
        self.end(process).await;
    }

    /// Until no process is left.
    pub async fn none_left(&self) {
        while !lock(&self.processes).is_empty() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Proves this host's life to the guards, until cancelled.
    pub async fn renew_on(self: Arc<Self>, until: CancellationToken) {
        loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = sleep(RENEW_EVERY) => {}
            }
            lock(&self.processes).values().for_each(|held| held.renewer.renew(true));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
