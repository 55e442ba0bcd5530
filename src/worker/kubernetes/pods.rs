//! The fleet's pods, as the watch shows them to this replica.
//!
//! Owns what is known of each pod, which turns wait for a pod, and ends that are not reported yet. A pod that was
//! created after a list was requested is never counted as gone because that list lacks it.
//!
//! Every replica sees every pod of its fleet, whichever replica created it. Any replica reports a pod's end and
//! removes a pod that nobody needs.

mod asked;

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::Instant,
};

use super::{
    cluster::{Cluster, Refusal},
    manifest::{self, Owner},
    verdict::{self, Ending, PodStanding, Wait},
};
use crate::{
    id::{ConversationId, WorkerId},
    token::TokenHash,
};

/// Creations in flight at once.
const CREATIONS_MAX: usize = 8;
/// Turns that may wait for their pods without using a turn slot.
const STARTS_MAX: usize = 256;
/// Deletions that may wait; the sweep finds the rest again.
const DOOMED_MAX: usize = 1024;

/// The pods of one fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods(Arc<FleetParts>);

#[derive(Debug)]
struct FleetParts {
    cluster: Cluster,
    fleet: String,
    gateway_url: String,
    /// The Deployment that owns new pods; `None` until it is looked up.
    owner: watch::Sender<Option<Owner>>,
    owner_name: Option<String>,
    state: Mutex<FleetState>,
    /// Notified when an end is to be reported.
    ended: Notify,
    link: watch::Sender<WatchLink>,
    creations: Semaphore,
    starts: Arc<Semaphore>,
    doomed: mpsc::Sender<String>,
    doomed_out: Mutex<Option<mpsc::Receiver<String>>>,
}

#[derive(Debug, Default)]
struct FleetState {
    pods: HashMap<String, PodEntry>,
    /// Number of lists so far. A list shows every pod created before it began.
    lists: u64,
    /// Names in the list under way.
    listed: Vec<String>,
    untold: Vec<Ended>,
}

#[derive(Debug)]
struct PodEntry {
    seen: watch::Sender<Seen>,
    /// `State::lists` when the pod was known to exist; `None` while its creation is in flight.
    since_list: Option<u64>,
}

/// The state of one pod.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The pod's name.
    pub name: String,
    /// The worker in the pod.
    pub worker: WorkerId,
    /// The conversation the pod serves.
    pub conversation: ConversationId,
    /// Name and revision.
    pub agent: (String, i32),
    /// SHA-256 of the worker's token.
    pub token_hash: Option<TokenHash>,
    /// The pod's phase, from the worker's view.
    pub standing: PodStanding,
    /// When this replica first saw the present standing.
    pub since: Instant,
}

/// A pod that ended and whose end is to be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The pod's name.
    pub name: String,
    /// The worker that was in the pod.
    pub worker: WorkerId,
    /// SHA-256 of the worker's token.
    pub token_hash: Option<TokenHash>,
    /// Why the worker is gone.
    pub ending: Ending,
}

/// State of the watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchLink {
    /// All pods are known, and changes arrive.
    Whole,
    /// Not connected, with the cluster's error.
    Broken(String),
}

/// Settings of a fleet.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// The fleet's name, a label of its pods.
    pub name: String,
    /// The URL that workers call.
    pub gateway_url: String,
    /// The gateway's Deployment, in the workers' namespace.
    pub owner: Option<String>,
}

impl Pods {
    /// The pods of a fleet. Empty until [`super::watch`] lists them.
    pub fn new(cluster: Cluster, fleet: Fleet) -> Self {
        let (doomed, doomed_out) = mpsc::channel(DOOMED_MAX);
        Pods(Arc::new(FleetParts {
            cluster,
            fleet: fleet.name,
            gateway_url: fleet.gateway_url,
            owner: watch::Sender::new(None),
            owner_name: fleet.owner,
            state: Mutex::default(),
            ended: Notify::new(),
            link: watch::Sender::new(WatchLink::Broken("not asked yet".to_owned())),
            creations: Semaphore::new(CREATIONS_MAX),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
            doomed,
            doomed_out: Mutex::new(Some(doomed_out)),
        }))
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    pub(super) fn selector(&self) -> String {
        manifest::selector(&self.0.fleet)
    }

    /// The state of the watch and its changes.
    pub fn link(&self) -> watch::Receiver<WatchLink> {
        self.0.link.subscribe()
    }

    /// Looks up the owner of new pods, once.
    pub(super) async fn find_owner(&self) -> Result<(), Refusal> {
        if let Some(name) = &self.0.owner_name
            && self.0.owner.borrow().is_none()
        {
            let owner = self.0.cluster.owner(name).await?;
            self.0.owner.send_replace(owner);
        }
        Ok(())
    }

    /// Sets the state of the watch. Returns whether it changed.
    pub(super) fn set_link(&self, link: WatchLink) -> bool {
        self.0.link.send_if_modified(|it| {
            let is_new = *it != link;
            *it = link;
            is_new
        })
    }

    /// The newest pod of this conversation that waits or runs.
    pub fn of_conversation(&self, conversation: ConversationId) -> Option<watch::Receiver<Seen>> {
        let state = self.0.state.lock();
        let of_it = state.pods.values().filter(|entry| {
            let seen = entry.seen.borrow();
            seen.conversation == conversation
                && matches!(seen.standing, PodStanding::Waiting(_) | PodStanding::Running)
        });
        // Worker ids grow with time.
        of_it.max_by_key(|entry| entry.seen.borrow().worker).map(|entry| entry.seen.subscribe())
    }

    /// Every known pod.
    pub fn all(&self) -> Vec<Seen> {
        self.0.state.lock().pods.values().map(|entry| entry.seen.borrow().clone()).collect()
    }

    /// Deletes a pod, now or as soon as the cluster is reachable.
    pub fn bury(&self, name: &str) {
        // A name that does not fit is found again by the sweep.
        let _ = self.0.doomed.try_send(name.to_owned());
    }

    /// The queue of deletions, for its one consumer; `None` after the first call.
    pub(super) fn doomed(&self) -> Option<mpsc::Receiver<String>> {
        self.0.doomed_out.lock().take()
    }

    /// Whether the pod has ended or is unknown.
    pub(super) fn is_ended(&self, name: &str) -> bool {
        let state = self.0.state.lock();
        state.pods.get(name).is_none_or(|entry| matches!(entry.seen.borrow().standing, PodStanding::Ended(_)))
    }

    /// A permit for a turn to wait for its pod without a turn slot; `None` if all are in use.
    pub(super) fn start_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.starts.clone().try_acquire_owned().ok()
    }

    /// Waits for ends to report. Each end is returned once; put back what could not be reported.
    pub async fn ends(&self) -> Vec<Ended> {
        loop {
            let rung = self.0.ended.notified();
            let untold = std::mem::take(&mut self.0.state.lock().untold);
            if !untold.is_empty() {
                return untold;
            }
            rung.await;
        }
    }

    /// Returns ends that could not be reported to the queue.
    pub fn put_back(&self, untold: Vec<Ended>) {
        self.0.state.lock().untold.extend(untold);
        self.0.ended.notify_one();
    }

    /// Applies one event of the watch.
    pub(super) fn hear(&self, event: Event<Pod>) {
        let mut state = self.0.state.lock();
        match event {
            Event::Init => {
                state.lists += 1;
                state.listed.clear();
            }
            Event::InitApply(pod) => {
                state.listed.extend(pod.metadata.name.clone());
                state.note(&pod);
            }
            Event::Apply(pod) => state.note(&pod),
            Event::Delete(pod) => state.forget(pod.metadata.name.as_deref().unwrap_or_default(), &pod),
            Event::InitDone => {
                state.forget_unlisted();
                drop(state);
                self.set_link(WatchLink::Whole);
                return self.0.ended.notify_one();
            }
        }
        if !state.untold.is_empty() {
            self.0.ended.notify_one();
        }
    }
}

impl FleetState {
    fn note(&mut self, pod: &Pod) {
        let standing = verdict::standing(pod);
        let lists = self.lists;
        let Some((name, entry)) = self.entry(pod) else { return };
        entry.since_list = Some(lists);
        let ended = entry.stand(standing);
        tracing::debug!(pod = name, standing = ?entry.seen.borrow().standing, "a worker's pod");
        self.untold.extend(ended);
    }

    /// The pod is deleted. Its last status tells how it ended; otherwise the cause is the deletion.
    fn forget(&mut self, name: &str, last: &Pod) {
        let Some(entry) = self.pods.remove(name) else { return };
        let ending = match verdict::standing(last) {
            PodStanding::Ended(ending) | PodStanding::Leaving(ending) => ending,
            PodStanding::Waiting(_) | PodStanding::Running => Ending::deleted(),
        };
        self.untold.extend(entry.stand(PodStanding::Ended(ending)));
    }

    /// Ends the pods that the completed list lacks though they were created before it.
    fn forget_unlisted(&mut self) {
        let FleetState { pods, lists, listed, untold } = self;
        pods.retain(|name, entry| {
            let is_there = entry.since_list.is_none_or(|since| since >= *lists) || listed.contains(name);
            if !is_there {
                untold.extend(entry.stand(PodStanding::Ended(Ending::deleted())));
            }
            is_there
        });
        listed.clear();
    }

    fn entry(&mut self, pod: &Pod) -> Option<(String, &mut PodEntry)> {
        let name = pod.metadata.name.clone()?;
        let about = manifest::about(pod)?;
        let now = Instant::now();
        let entry = self.pods.entry(name.clone()).or_insert_with(|| {
            let seen = Seen {
                name: name.clone(),
                worker: about.worker,
                conversation: about.conversation,
                agent: about.agent,
                token_hash: about.token_hash,
                standing: PodStanding::Waiting(Wait::Start),
                since: now,
            };
            PodEntry { seen: watch::Sender::new(seen), since_list: None }
        });
        Some((name, entry))
    }
}

impl PodEntry {
    /// Updates the standing. Returns the end when it is first seen; an end is final.
    fn stand(&self, standing: PodStanding) -> Option<Ended> {
        let mut ended = None;
        self.seen.send_if_modified(|seen| {
            if seen.standing == standing || matches!(seen.standing, PodStanding::Ended(_)) {
                return false;
            }
            if let PodStanding::Ended(ending) = &standing {
                let (name, worker, token_hash) = (seen.name.clone(), seen.worker, seen.token_hash);
                ended = Some(Ended { name, worker, token_hash, ending: ending.clone() });
            }
            seen.standing = standing;
            seen.since = Instant::now();
            true
        });
        ended
    }
}
