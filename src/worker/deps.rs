//! Shared dependencies of this replica's turns: store, writer, lists of what runs, and how workers are launched.

use std::{collections::BTreeMap, ops::Deref, path::PathBuf, sync::Arc, time::Duration};

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

/// Shared dependencies of this replica's turns. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Deps(Arc<DepsParts>);

#[derive(Debug)]
pub(super) struct DepsParts {
    pub(super) store: Store,
    /// Where remote workers' calls meet the turns of this replica.
    pub(super) rendezvous: Arc<Rendezvous>,
    pub(super) writer: Writer,
    pub(super) supervisor: Supervisor,
    /// The directory that holds all workspaces.
    pub(super) workspaces: PathBuf,
    silence_max: Duration,
    worker_user: Option<String>,
    worker_namespaces: bool,
    worker_cgroups: bool,
    /// The part of this process's environment that workers receive.
    worker_env: BTreeMap<String, String>,
    worker_file_max: Size,
    pub(super) slots: TurnSlots,
    pub(super) running: Arc<Running>,
    /// `None` where this replica starts no worker pods.
    pub(super) pods: Option<Pods>,
    pub(super) guards: Arc<InputGuards>,
}

impl Deref for Deps {
    type Target = DepsParts;

    fn deref(&self) -> &DepsParts {
        &self.0
    }
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

    /// The working directory of a conversation, or of all shared workers of an agent. The directory outlives a
    /// worker: the next process finds the files of the last one.
    pub(super) fn workspace(&self, agent: &str, conversation: Option<ConversationId>) -> PathBuf {
        match conversation {
            Some(conversation) => self.workspaces.join(conversation.to_string()),
            None => self.workspaces.join("shared").join(agent),
        }
    }

    /// A launch in `workspace` with the settings that all workers of this replica share.
    pub(super) fn launch(&self, command: Vec<String>, workspace: PathBuf) -> Launch {
        Launch {
            silence_max: self.silence_max,
            user: self.worker_user.clone(),
            namespace: self.worker_namespaces,
            cgroup: self.worker_cgroups,
            file_max: self.worker_file_max,
            env: self.worker_env.clone(),
            ..Launch::new(command, workspace)
        }
    }
}
