//! The runtime `kubernetes`: one pod a conversation, whose worker calls the gateway.
//!
//! ```text
//! begin ─► serve ─► pods ─► cluster ─► the API server
//!            │        ▲                    │
//!            │        └───── watch ◄───────┘ ─► ends: why a worker is gone, for the holder of its turn
//!            ▼                             └──► sweep: pods that nobody needs, removed by any replica
//!    the worker calls some replica, which takes the turn from here: `remote`
//! ```
//!
//! Owns pods, and a turn only until a worker takes it: from then on the worker is an ordinary remote worker, and
//! the end of its pod is one more reason for a last word. A pod belongs to no replica. `manifest` and `verdict`
//! are pure; `kube` is used in this directory only.

pub mod cluster;
mod ends;
pub mod manifest;
pub mod pods;
mod serve;
pub mod sweep;
pub mod verdict;
pub mod watch;

pub use self::pods::Pods;
pub(super) use self::serve::serve;
use self::{cluster::Cluster, pods::Fleet};
use crate::{
    config::Config,
    store::Store,
    task::{Supervisor, TaskKind},
};

/// The pods of this configuration; `None` if it asks for none. `url`: this replica's own URL, which workers call
/// unless the configuration names another.
///
/// # Errors
/// No cluster was found, or its credentials are unreadable.
pub async fn connect(config: &Config, url: &str) -> Result<Option<Pods>, kube::Error> {
    if !config.kubernetes {
        return Ok(None);
    }
    let cluster = Cluster::infer(config.kubernetes_namespace.as_deref()).await?;
    let gateway_url = config.kubernetes_gateway_url.clone().unwrap_or_else(|| url.to_owned());
    let name = config.kubernetes_fleet.clone();
    Ok(Some(Pods::new(cluster, Fleet { name, gateway_url, owner: config.kubernetes_owner.clone() })))
}

impl Pods {
    /// Starts the watch, deletions, reports and sweep. They run through a drain, since running turns still need
    /// their reports.
    pub fn start(&self, supervisor: &Supervisor, store: &Store) {
        let until = || supervisor.hard().clone();
        let spawn = |name: &'static str, task: Task| supervisor.spawn(TaskKind::Replica, name, task);
        spawn("pods: watch", Box::pin(watch::watch_on(self.clone(), until())));
        spawn("pods: bury", Box::pin(watch::bury_on(self.clone(), until())));
        spawn("pods: tell", Box::pin(ends::tell_on(store.clone(), self.clone(), until())));
        spawn("pods: sweep", Box::pin(sweep::sweep_on(store.clone(), self.clone(), until())));
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
