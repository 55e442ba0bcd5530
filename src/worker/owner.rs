//! This replica's side of [`crate::host`]: which program to start, how turns run, what operators see of workers.

use super::{
    deps::Deps,
    turn::{Account, Job, begin, cancelled, give_back, speak},
};
use crate::{
    failure::Code,
    host::{
        Fate, Halt, HostOwner, HostedTurn, Obstacle, ProcessLink, Program, Started,
        process::{Exit, Launch, Process},
    },
    id::WorkerId,
    store::{warn_of, workers::NewWorker},
    task::Supervisor,
    telemetry::metrics,
};

impl HostOwner for Deps {
    type Turn = Job;

    fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    fn mint(&self) -> WorkerId {
        WorkerId(self.store.clock().mint())
    }

    fn program(&self, job: &Job) -> Program {
        let (agent, spec) = (&job.agent, &job.agent.spec);
        let conversation = (!job.is_shared()).then(|| job.conversation());
        let launch = self.launch(spec.command.clone(), self.workspace(&agent.name, conversation));
        let mut env = launch.env;
        env.extend(spec.env.clone());
        env.insert("LASTWORD_AGENT".to_owned(), agent.name.clone());
        if let Some(conversation) = conversation {
            env.insert("LASTWORD_CONVERSATION_ID".to_owned(), conversation.to_string());
        }
        let (memory, processes) = (spec.limits.memory, spec.limits.processes);
        Program {
            agent: agent.name.clone(),
            revision: agent.revision,
            launch: Launch { env, memory, processes, ..launch },
            turns: spec.turns_per_worker() as usize,
            startup: spec.timeouts.startup.0,
            idle_ttl: spec.idle_ttl.0,
            is_guarded: !spec.guards.is_empty(),
        }
    }

    async fn run<L: ProcessLink>(&self, job: &mut Job, link: &mut L) -> Fate {
        begin(self, link, job).await
    }

    async fn not_started(&self, job: Job, why: Obstacle, process: Option<&Process>) {
        not_started(self, &job, why, process).await;
    }

    async fn forsaken(&self, job: Job) {
        give_back(self, &job.claim, "drain").await;
    }

    async fn note_started(&self, started: Started<'_>) {
        let Started { worker, agent, revision, conversation, pid } = started;
        let new = NewWorker {
            id: worker,
            agent: agent.to_owned(),
            agent_revision: revision,
            runtime: crate::agent::Runtime::Process,
            conversation,
            pid,
        };
        if let Err(why) = self.store.worker_started(&new).await {
            warn_of!(why, "a worker's start was not recorded");
        }
    }

    async fn note_ready(&self, worker: WorkerId) {
        if let Err(why) = self.store.worker_ready(worker).await {
            warn_of!(why, "a ready worker was not recorded");
        }
    }

    async fn note_ended(&self, worker: WorkerId, exit: Exit, stderr: String) {
        metrics::worker_exits(reason(&exit));
        if let Err(why) = self.store.worker_ended(worker, &exit.describe(), &stderr).await {
            warn_of!(why, worker_id = %worker, "a worker's end was not recorded");
        }
    }

    fn note_room(&self) {
        self.slots.look_if_wanted();
    }
}

/// Ends a turn whose worker was not started: writes the last word, gives the claim back, or does nothing where the
/// turn is no longer this replica's.
pub(super) async fn not_started(deps: &Deps, job: &Job, why: Obstacle, process: Option<&Process>) {
    let claim = &job.claim;
    let word = match why.told(process) {
        Obstacle::Halted(Halt::Lost | Halt::Moved) => return,
        Obstacle::Halted(Halt::Interrupted) => return give_back(deps, claim, "drain").await,
        Obstacle::Lacks { lack, detail } => {
            tracing::warn!(
                lack = lack.as_str(),
                detail,
                "no worker can be started here; the turn is given back"
            );
            return give_back(deps, claim, "lack").await;
        }
        Obstacle::Cancelled(by) => cancelled(&by),
        Obstacle::Lapsed => return,
        Obstacle::Failed { message, detail } => {
            let is_capped = job.clocks.cap_left(tokio::time::Instant::now()).is_zero();
            let code = if is_capped { Code::TurnTimeout } else { Code::WorkerStartupFailed };
            let tail = process.map(Process::stderr_tail).filter(|tail| !tail.is_empty());
            Account::unstarted(claim, Some(job)).failure(code, &message, detail.or(tail))
        }
    };
    speak(deps, claim, claim.last_seq, word).await;
}

fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit { oom: true, .. } => "oom",
        Exit { too_many_processes: true, .. } => "processes",
        Exit { silence: true, .. } => "silence",
        Exit { code: Some(0), .. } => "ok",
        Exit { code: Some(_), .. } => "code",
        Exit { .. } => "signal",
    }
}
