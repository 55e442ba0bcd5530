//! A pod whose creation is in flight: known before it exists, so that no event of the watch about it is missed.

use tokio::{sync::watch, time::Instant};

use super::{PodEntry, Pods, Seen};
use crate::{
    token,
    worker::kubernetes::{
        cluster::Refusal,
        manifest::{self, Home, PodOrder},
        verdict::{PodStanding, Wait},
    },
};

impl Pods {
    /// Asks the cluster once for a pod. If dropped before the answer the pod may exist: the watch then shows it.
    ///
    /// # Errors
    /// The cluster's refusal. The same order may be sent again.
    pub async fn create(&self, order: &PodOrder) -> Result<watch::Receiver<Seen>, Refusal> {
        let owner = self.0.owner.borrow().clone();
        let home = Home { fleet: self.0.fleet.clone(), gateway_url: self.0.gateway_url.clone(), owner };
        let Some(pod) = manifest::manifest(order, &home) else {
            let detail = "its agent has no pod".to_owned();
            return Err(Refusal { message: "its agent has no pod", detail, may_pass: false, after: None });
        };
        // The semaphore is never closed.
        let _permit = self.0.creations.acquire().await;
        let asked = PendingPod::new(self, order);
        self.0.cluster.create(&pod).await?;
        Ok(asked.found())
    }
}

/// A creation in flight. Dropping it forgets the pod, unless the creation succeeded or the watch has shown the
/// pod.
struct PendingPod<'a> {
    pods: &'a Pods,
    name: String,
    seen: watch::Receiver<Seen>,
}

impl<'a> PendingPod<'a> {
    fn new(pods: &'a Pods, order: &PodOrder) -> Self {
        let name = manifest::name_of(order.worker);
        let now = Instant::now();
        let seen = Seen {
            name: name.clone(),
            worker: order.worker,
            conversation: order.conversation,
            agent: (order.agent.name.clone(), order.agent.revision),
            token_hash: Some(token::hash(&order.token.0)),
            standing: PodStanding::Waiting(Wait::Start),
            since: now,
        };
        let mut state = pods.0.state.lock();
        let fresh = || PodEntry { seen: watch::Sender::new(seen), since_list: None };
        let seen = state.pods.entry(name.clone()).or_insert_with(fresh).seen.subscribe();
        drop(state);
        PendingPod { pods, name, seen }
    }

    fn found(self) -> watch::Receiver<Seen> {
        let mut state = self.pods.0.state.lock();
        let lists = state.lists;
        if let Some(entry) = state.pods.get_mut(&self.name) {
            entry.since_list.get_or_insert(lists);
        }
        drop(state);
        self.seen.clone()
    }
}

impl Drop for PendingPod<'_> {
    fn drop(&mut self) {
        let mut state = self.pods.0.state.lock();
        if state.pods.get(&self.name).is_some_and(|entry| entry.since_list.is_none()) {
            state.pods.remove(&self.name);
        }
    }
}
