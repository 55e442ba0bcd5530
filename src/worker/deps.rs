//! What the turns of this replica need: the store, the writer, the lists of what runs, and how workers are started.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    kubernetes::Pods,
    registry::{Running, TurnSlots},
    turn::InputGuards,
};
use crate::{
    config::{Config, pass},
    host::process::Launch,
    id::ConversationId,
    rendezvous::Rendezvous,
    store::{Store, group_commit::Writer},
    task::Supervisor,
    units::Size,
};

/// What turns need of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Deps(Arc<DepsParts>);

#[derive(Debug)]
struct DepsParts {
    store: Store,
    rendezvous: Arc<Rendezvous>,
    writer: Writer,
    supervisor: Supervisor,
    workspaces: PathBuf,
    silence_max: Duration,
    worker_user: Option<String>,
    worker_namespaces: bool,
    worker_cgroups: bool,
    /// What workers find of this process's environment.
    worker_env: BTreeMap<String, String>,
    worker_file_max: Size,
    slots: TurnSlots,
    running: Arc<Running>,
    pods: Option<Pods>,
    guards: Arc<InputGuards>,
}

impl Deps {
    pub(super) fn new(
        store: Store,
        rendezvous: Arc<Rendezvous>,
        writer: Writer,
        supervisor: Supervisor,
        config: &Config,
        pods: Option<Pods>,
    ) -> Self {
        Deps(Arc::new(DepsParts {
            slots: TurnSlots::new(config, store.clone()),
            store,
            rendezvous,
            writer,
            supervisor,
            workspaces: config.data_dir.join("workspaces"),
            silence_max: config.postgres_away_max.0,
            worker_user: config.worker_user.clone(),
            worker_namespaces: config.worker_namespaces,
            worker_cgroups: config.worker_cgroups,
            worker_env: pass::passed(&config.worker_env_pass),
            worker_file_max: config.worker_file_max,
            running: Arc::default(),
            pods,
            guards: Arc::default(),
        }))
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

    /// Checks of inputs.
    pub(super) fn guards(&self) -> &Arc<InputGuards> {
        &self.0.guards
    }

    /// Worker pods, where this replica makes some.
    pub(super) fn pods(&self) -> Option<&Pods> {
        self.0.pods.as_ref()
    }

    /// The slots for turns.
    pub(super) fn slots(&self) -> &TurnSlots {
        &self.0.slots
    }

    /// Turns that run here, as others reach them.
    pub(super) fn running(&self) -> &Arc<Running> {
        &self.0.running
    }

    /// The workspaces of conversations.
    pub(super) fn workspaces(&self) -> &Path {
        &self.0.workspaces
    }

    /// A conversation's own directory, or the one of all shared workers of an agent; a worker that is
    /// started again finds what it left there.
    pub(super) fn workspace(&self, agent: &str, conversation: Option<ConversationId>) -> PathBuf {
        match conversation {
            Some(conversation) => self.0.workspaces.join(conversation.to_string()),
            None => self.0.workspaces.join("shared").join(agent),
        }
    }

    /// A launch in `workspace` with what this replica says of all its workers.
    pub(super) fn launch(&self, command: Vec<String>, workspace: PathBuf) -> Launch {
        Launch {
            silence_max: self.0.silence_max,
            user: self.0.worker_user.clone(),
            namespace: self.0.worker_namespaces,
            cgroup: self.0.worker_cgroups,
            file_max: self.0.worker_file_max,
            env: self.0.worker_env.clone(),
            ..Launch::new(command, workspace)
        }
    }
}
