//! The pods of the fleet, as the watch shows them to this replica.
//!
//! Owns what is known of each pod, who waits for it, and the ends that nobody has been told of yet. Refuses to
//! take a pod for gone that a list could not have shown: one that was made after the list was asked for.
//!
//! Every replica sees every pod of its fleet, also those that others made: any of them tells how one ended, and
//! removes those that nobody needs.

mod asked;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
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

/// Pods that are asked for at once.
const CREATIONS_MAX: usize = 8;
/// Turns that wait for their pods without a place of their own.
const STARTS_MAX: usize = 256;
/// Deletions that may wait; those beyond are found again by the sweep.
const DOOMED_MAX: usize = 1024;

/// The pods of one fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods(Arc<FleetParts>);

#[derive(Debug)]
struct FleetParts {
    cluster: Cluster,
    fleet: String,
    gateway_url: String,
    /// The Deployment that pods belong to, and its uid once it is known.
    owner: watch::Sender<Option<Owner>>,
    owner_name: Option<String>,
    state: Mutex<FleetState>,
    /// Rung where a pod's end is to be told.
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
    /// Counts the lists. A list shows every pod that was made before it began.
    lists: u64,
    /// Names that the list under way has shown.
    listed: Vec<String>,
    untold: Vec<Ended>,
}

#[derive(Debug)]
struct PodEntry {
    seen: watch::Sender<Seen>,
    /// The list that was the newest one when the pod was known to be there; `None` while it is asked for.
    since_list: Option<u64>,
}

/// What is known of one pod.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// The worker inside.
    pub worker: WorkerId,
    /// Whose turns it serves.
    pub conversation: ConversationId,
    /// The agent and its revision.
    pub agent: (String, i32),
    /// What its worker's token is known by.
    pub token_hash: Option<TokenHash>,
    /// How it is.
    pub standing: PodStanding,
    /// Since when it is so, for this replica.
    pub since: Instant,
}

/// A pod that ended, whose end is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// The worker that was inside.
    pub worker: WorkerId,
    /// What its token is known by.
    pub token_hash: Option<TokenHash>,
    /// Why.
    pub ending: Ending,
}

/// How the watch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchLink {
    /// All pods are known, and changes are heard.
    Whole,
    /// Not yet, or not any more; with what the cluster said.
    Broken(String),
}

/// What a fleet is.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its name: what its pods are labelled with.
    pub name: String,
    /// Where workers call home.
    pub gateway_url: String,
    /// The gateway's Deployment, in the workers' namespace.
    pub owner: Option<String>,
}

impl Pods {
    /// The pods of a fleet, none of them known yet: see [`super::watch`].
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

    /// How the watch stands, now and from now on.
    pub fn link(&self) -> watch::Receiver<WatchLink> {
        self.0.link.subscribe()
    }

    /// Finds the owner of new pods, once.
    pub(super) async fn find_owner(&self) -> Result<(), Refusal> {
        if let Some(name) = &self.0.owner_name
            && self.0.owner.borrow().is_none()
        {
            let owner = self.0.cluster.owner(name).await?;
            self.0.owner.send_replace(owner);
        }
        Ok(())
    }

    /// Says how the watch stands; whether that is news.
    pub(super) fn set_link(&self, link: WatchLink) -> bool {
        self.0.link.send_if_modified(|it| {
            let is_new = *it != link;
            *it = link;
            is_new
        })
    }

    /// The newest living pod of this conversation.
    pub fn of_conversation(&self, conversation: ConversationId) -> Option<watch::Receiver<Seen>> {
        let state = self.lock();
        let of_it = state.pods.values().filter(|entry| {
            let seen = entry.seen.borrow();
            seen.conversation == conversation
                && matches!(seen.standing, PodStanding::Waiting(_) | PodStanding::Running)
        });
        // Worker ids grow with time.
        of_it.max_by_key(|entry| entry.seen.borrow().worker).map(|entry| entry.seen.subscribe())
    }

    /// Every pod that is known.
    pub fn all(&self) -> Vec<Seen> {
        self.lock().pods.values().map(|entry| entry.seen.borrow().clone()).collect()
    }

    /// Has a pod deleted, now or as soon as the cluster can be reached.
    pub fn bury(&self, name: &str) {
        // What finds no room is found again by the sweep.
        let _ = self.0.doomed.try_send(name.to_owned());
    }

    /// What is to be deleted; the first caller gets it.
    pub(super) fn doomed(&self) -> Option<mpsc::Receiver<String>> {
        self.0.doomed_out.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether this pod is known to have ended, or not known.
    pub(super) fn is_ended(&self, name: &str) -> bool {
        let state = self.lock();
        state.pods.get(name).is_none_or(|entry| matches!(entry.seen.borrow().standing, PodStanding::Ended(_)))
    }

    /// A place for a turn that waits for its pod, where there is one.
    pub(super) fn start_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.starts.clone().try_acquire_owned().ok()
    }

    /// Waits for pods whose end is to be told. Each comes once; what is not told must be put back.
    pub async fn ends(&self) -> Vec<Ended> {
        loop {
            let rung = self.0.ended.notified();
            let untold = std::mem::take(&mut self.lock().untold);
            if !untold.is_empty() {
                return untold;
            }
            rung.await;
        }
    }

    /// Puts back ends that could not be told.
    pub fn put_back(&self, untold: Vec<Ended>) {
        self.lock().untold.extend(untold);
        self.0.ended.notify_one();
    }

    /// Takes in what the watch says.
    pub(super) fn hear(&self, event: Event<Pod>) {
        let mut state = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, FleetState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The pod is gone: what its last status said is how it ended, or it was deleted.
    fn forget(&mut self, name: &str, last: &Pod) {
        let Some(entry) = self.pods.remove(name) else { return };
        let ending = match verdict::standing(last) {
            PodStanding::Ended(ending) | PodStanding::Leaving(ending) => ending,
            PodStanding::Waiting(_) | PodStanding::Running => Ending::deleted(),
        };
        self.untold.extend(entry.stand(PodStanding::Ended(ending)));
    }

    /// Pods that the list which has just ended should have shown.
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
    /// Takes in how the pod is now; its end, the first time that it is one. An end is for good.
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
