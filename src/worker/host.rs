//! The host: what this replica runs. Free places, warm workers, and the turns under way.
//!
//! Owns which worker serves which turn (a conversation's own, or a shared one with room), and the
//! ways to reach a turn that runs here: orders from clients, and the two stops (lost: say nothing
//! more; interrupted: a deploy ends it). Refuses a claim without a free place. It holds the work; no
//! request does (I12).

mod evict;
mod leftovers;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

pub use super::job::Halt;
use super::{
    begin,
    guards::Checks,
    job::Job,
    kubernetes::Pods,
    life,
    places::Places,
    pool::Pool,
    process::{Launch, Renewer},
    runs::Runs,
    slots::Slots,
};
use crate::{
    agent::Runtime,
    config::{Config, pass},
    id::{ConversationId, TurnId, WorkerId},
    rendezvous::Rendezvous,
    store::{
        Store,
        claim::{Phase, Warm},
        commands::Command,
        group_commit::Writer,
    },
    task::{Kind, Supervisor},
    telemetry::metrics,
    units::Size,
};

/// What this replica runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    rendezvous: Arc<Rendezvous>,
    writer: Writer,
    supervisor: Supervisor,
    workspaces: PathBuf,
    silence_max: Duration,
    worker_user: Option<String>,
    worker_namespaces: bool,
    /// What workers find of this process's environment.
    worker_env: BTreeMap<String, String>,
    worker_file_max: Size,
    places: Places,
    slots: Slots,
    lives: Mutex<HashMap<ConversationId, Life>>,
    pool: Pool,
    runs: Runs,
    pods: Option<Pods>,
    checks: Arc<Checks>,
}

/// The life of a conversation's worker, as others reach it.
#[derive(Debug)]
struct Life {
    worker: WorkerId,
    generation: i64,
    agent_revision: i32,
    jobs: mpsc::Sender<Job>,
    stop: CancellationToken,
    renewer: Option<Renewer>,
    is_idle: bool,
    /// When it fell idle last.
    idle_since: Instant,
    /// Whether an input must be looked at before anything is started.
    is_guarded: bool,
}

impl Life {
    /// As a claim must know it; `None` where it is not wanted any more.
    fn warm(&self, conversation: ConversationId) -> Option<Warm> {
        if self.stop.is_cancelled() {
            return None;
        }
        let idle = (self.is_idle && !self.is_guarded).then_some((self.worker, self.agent_revision));
        Some(Warm { conversation, generation: self.generation, idle })
    }
}

impl Host {
    /// A host of nothing yet.
    pub fn new(
        store: Store,
        rendezvous: Arc<Rendezvous>,
        writer: Writer,
        supervisor: Supervisor,
        config: &Config,
        pods: Option<Pods>,
    ) -> Self {
        Host(Arc::new(Inner {
            store,
            rendezvous,
            writer,
            supervisor,
            workspaces: config.data_dir.join("workspaces"),
            silence_max: config.postgres_away_max.0,
            worker_user: config.worker_user.clone(),
            worker_namespaces: config.worker_namespaces,
            worker_env: pass::passed(&config.worker_env_pass),
            worker_file_max: config.worker_file_max,
            places: Places::new(config),
            slots: Slots::new(config.workers_max()),
            lives: Mutex::default(),
            pool: Pool::default(),
            runs: Runs::default(),
            pods,
            checks: Arc::default(),
        }))
    }

    /// The runtimes that it hosts.
    pub fn runtimes(&self) -> &'static [Runtime] {
        if self.0.pods.is_some() { &[Runtime::Process, Runtime::Kubernetes] } else { &[Runtime::Process] }
    }

    /// Checks of inputs.
    pub(super) fn checks(&self) -> &Arc<Checks> {
        &self.0.checks
    }

    /// Worker pods, where this replica makes some.
    pub(super) fn pods(&self) -> Option<&Pods> {
        self.0.pods.as_ref()
    }

    /// Conversations that have a worker here. Busy ones too: their next turn can be claimed the moment
    /// their last word is written, before the worker is idle again. Shared workers belong to no
    /// conversation.
    pub fn warm(&self) -> Vec<Warm> {
        lock(&self.0.lives).iter().filter_map(|(&conversation, life)| life.warm(conversation)).collect()
    }

    /// The conversation's worker here.
    pub(super) fn warm_of(&self, conversation: ConversationId) -> Option<Warm> {
        lock(&self.0.lives).get(&conversation)?.warm(conversation)
    }

    /// The places for turns.
    pub(super) fn places(&self) -> &Places {
        &self.0.places
    }

    /// Turns that run here, as others reach them.
    pub(super) fn run_list(&self) -> &Runs {
        &self.0.runs
    }

    /// Gives up a claim that does not run here, so that no worker here receives it; false where one may have
    /// had it.
    pub fn forgo_unless_had(&self, turn: TurnId, epoch: i32) -> bool {
        self.0.runs.forgo_unless_had(turn, epoch)
    }

    /// Turns that run here, with their epochs.
    pub fn runs(&self) -> HashMap<TurnId, i32> {
        self.0.runs.epochs()
    }

    /// How long each turn that runs here has until its next clock lapses.
    pub fn time_left(&self) -> Vec<(TurnId, i32, Duration)> {
        self.0.runs.time_left()
    }

    /// Hands an order to a turn that runs here; it is read again later where that is not possible.
    pub fn order(&self, command: Command) {
        self.0.runs.order(command);
    }

    /// Stops a worker when the turns that it runs have ended; they are for the caller to cancel.
    pub fn stop_worker(&self, worker: WorkerId) -> Vec<TurnId> {
        for life in lock(&self.0.lives).values() {
            if life.worker == worker {
                life.stop.cancel();
            }
        }
        self.0.pool.retire(Some(worker));
        self.0.runs.of_worker(worker)
    }

    /// Stops idle workers of these conversations, where they are still the ones that `seen` told of: they
    /// can never serve again.
    pub fn stop_taken_over(&self, seen: &[(ConversationId, i64)], taken_over: &[ConversationId]) {
        let lives = lock(&self.0.lives);
        for (conversation, generation) in seen.iter().filter(|(c, _)| taken_over.contains(c)) {
            if let Some(life) = lives.get(conversation)
                && life.is_idle
                && life.generation == *generation
            {
                life.stop.cancel();
            }
        }
    }

    /// Lets no worker serve another turn: idle ones end now, those that run one end with it.
    pub fn retire_workers(&self) {
        for life in lock(&self.0.lives).values() {
            life.stop.cancel();
        }
        self.0.pool.retire(None);
    }

    /// Ends every turn here in this way, and every worker.
    pub fn halt_all(&self, why: Halt) {
        self.0.runs.halt_all(why);
        self.retire_workers();
        if why == Halt::Lost {
            // Each turn ends a worker of its own; a shared one has no turn left to wait for.
            self.0.pool.kill();
        }
    }

    /// Ends the turns that this replica holds no more.
    pub fn halt(&self, turn: TurnId, epoch: i32) {
        self.halt_as(turn, epoch, Halt::Lost);
    }

    pub(super) fn halt_as(&self, turn: TurnId, epoch: i32, why: Halt) {
        self.0.runs.halt(turn, epoch, why);
    }

    /// Proves this replica's life to its workers' guards, and counts them. Their limit is `silence_max`.
    pub fn renew(&self) {
        self.0.checks.tell_bounds();
        let (mut idle, mut busy) = self.0.pool.renew();
        for life in lock(&self.0.lives).values() {
            *(if life.is_idle { &mut idle } else { &mut busy }) += 1;
            if let Some(renewer) = &life.renewer {
                renewer.renew(!life.is_idle);
            }
        }
        // One that is idle leaves for the next that is needed, so it fills nothing.
        let used = self.0.slots.used().saturating_sub(idle);
        metrics::bound("workers", used as u64, self.0.slots.max() as u64);
        metrics::workers("idle", idle);
        metrics::workers("busy", busy);
    }

    /// How many workers live here.
    pub fn lives(&self) -> usize {
        lock(&self.0.lives).len() + self.0.pool.len()
    }

    pub(super) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Where remote workers meet this replica.
    pub(super) fn rendezvous(&self) -> &Arc<Rendezvous> {
        &self.0.rendezvous
    }

    pub(super) fn writer(&self) -> &Writer {
        &self.0.writer
    }

    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// A launch in `workspace` with what this replica says of all its workers.
    pub(super) fn launch(&self, command: Vec<String>, workspace: PathBuf) -> Launch {
        Launch {
            silence_max: self.0.silence_max,
            user: self.0.worker_user.clone(),
            namespace: self.0.worker_namespaces,
            file_max: self.0.worker_file_max,
            env: self.0.worker_env.clone(),
            ..Launch::new(command, workspace)
        }
    }

    /// A conversation's own directory, or the one of all shared workers of an agent; a worker that is
    /// started again finds what it left there.
    pub(super) fn workspace(&self, agent: &str, conversation: Option<ConversationId>) -> PathBuf {
        match conversation {
            Some(conversation) => self.0.workspaces.join(conversation.to_string()),
            None => self.0.workspaces.join("shared").join(agent),
        }
    }

    /// Shared workers.
    pub(super) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Stops the conversation's worker when its turn has ended: another worker has the next one.
    pub(super) fn stop_worker_of(&self, conversation: ConversationId) {
        if let Some(life) = lock(&self.0.lives).get(&conversation) {
            life.stop.cancel();
        }
    }

    /// Hands a job to its conversation's warm worker, or starts a new life for it; one that is `running` for
    /// a worker that has ended is given back.
    pub(super) fn place(&self, job: Job) {
        let mut lives = lock(&self.0.lives);
        let conversation = job.claim.conversation;
        let mut job = job;
        if let Some(life) = lives.get_mut(&conversation) {
            let is_match = life.generation == job.claim.generation
                && life.agent_revision == job.agent.revision
                && !matches!(job.claim.phase, Phase::Running(worker) if worker != life.worker)
                && !life.stop.is_cancelled();
            if is_match {
                match life.jobs.try_send(job) {
                    Ok(()) => {
                        life.is_idle = false;
                        // Its guard looks more often from now on.
                        life.renewer.as_ref().inspect(|renewer| renewer.renew(true));
                        return;
                    }
                    Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                        job = back;
                    }
                }
            }
            life.stop.cancel();
        }
        if job.claim.phase != Phase::Starting {
            drop(lives);
            let host = self.clone();
            let giving_back = async move { begin::give_back(&host, &job.claim, "drain").await };
            return self.0.supervisor.spawn(Kind::Turn, "turn", giving_back);
        }
        let worker = WorkerId(self.0.store.clock().mint());
        let (jobs, inbox) = mpsc::channel(1);
        let stop = CancellationToken::new();
        lives.insert(
            conversation,
            Life {
                worker,
                generation: job.claim.generation,
                agent_revision: job.agent.revision,
                jobs,
                stop: stop.clone(),
                renewer: None,
                is_idle: false,
                idle_since: Instant::now(),
                is_guarded: !job.agent.spec.guards.is_empty(),
            },
        );
        drop(lives);
        let host = self.clone();
        self.0.supervisor.spawn(Kind::Worker, format!("worker {worker}"), async move {
            life::live(host, worker, job, inbox, stop).await;
        });
    }

    pub(super) fn note_process(&self, conversation: ConversationId, worker: WorkerId, renewer: Renewer) {
        if let Some(life) = lock(&self.0.lives).get_mut(&conversation).filter(|life| life.worker == worker) {
            life.renewer = Some(renewer);
        }
    }

    /// The worker waits for its next turn; false where it is not wanted any more.
    pub(super) fn note_idle(&self, conversation: ConversationId, worker: WorkerId) -> bool {
        match lock(&self.0.lives).get_mut(&conversation).filter(|life| life.worker == worker) {
            // Its slot is wanted for another.
            Some(_) if self.0.slots.is_short() => false,
            Some(life) if !life.stop.is_cancelled() => {
                life.is_idle = true;
                life.idle_since = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// The worker takes no more turns.
    pub(super) fn note_ended(&self, conversation: ConversationId, worker: WorkerId) {
        let mut lives = lock(&self.0.lives);
        if lives.get(&conversation).is_some_and(|life| life.worker == worker) {
            lives.remove(&conversation);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
