//! A pod that is being asked for: known before it is there, so that whatever the watch says of it is not missed.

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
    /// Asks for a pod once. Dropped before the answer it may have been made: the watch shows it then.
    ///
    /// # Errors
    /// What the cluster said. It may be asked for again under the same order.
    pub async fn create(&self, order: &PodOrder) -> Result<watch::Receiver<Seen>, Refusal> {
        let owner = self.0.owner.borrow().clone();
        let home = Home { fleet: self.0.fleet.clone(), gateway_url: self.0.gateway_url.clone(), owner };
        let Some(pod) = manifest::manifest(order, &home) else {
            let detail = "its agent has no pod".to_owned();
            return Err(Refusal { message: "its agent has no pod", detail, may_pass: false, after: None });
        };
        // It never closes.
        let _permit = self.0.creations.acquire().await;
        let asked = PendingPod::new(self, order);
        self.0.cluster.create(&pod).await?;
        Ok(asked.found())
    }
}

/// A pod that is being asked for. Its drop forgets it, unless it is there or the watch has shown it.
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
        let mut state = pods.lock();
        let fresh = || PodEntry { seen: watch::Sender::new(seen), since_list: None };
        let seen = state.pods.entry(name.clone()).or_insert_with(fresh).seen.subscribe();
        drop(state);
        PendingPod { pods, name, seen }
    }

    fn found(self) -> watch::Receiver<Seen> {
        let mut state = self.pods.lock();
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
        let mut state = self.pods.lock();
        if state.pods.get(&self.name).is_some_and(|entry| entry.since_list.is_none()) {
            state.pods.remove(&self.name);
        }
    }
}
