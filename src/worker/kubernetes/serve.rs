//! A turn that needs a pod: this replica holds the turn as `starting` until the worker in the pod takes it.
//!
//! ```text
//! claimed ─► a living pod of its conversation? ─no─► creation, retried where that may help
//!                 │ yes                                        │
//!                 └────────────► followed ◄─────────────────────┘
//!                                   │ its worker claims the turn, at any replica: this run ends without a word
//!                                   │ the pod fails, the startup clock lapses, a cancel: the last word, with why
//! ```
//!
//! Owns the start of the worker within the turn's startup clock, and the reason if it fails. If a pod that served
//! the conversation before dies before it takes this turn, a new pod is created instead of failing the turn.
//!
//! Once the worker has the turn, [`super::ends`] takes over.

use std::{convert::Infallible, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    cluster::Refusal,
    manifest::{PodOrder, Token},
    pods::{Pods, Seen, WatchLink},
    verdict::{Ending, PodStanding, Wait},
    watch::Pause,
};
use crate::{
    agent::PodTemplate,
    host::{Halt, Obstacle, unless_called_off},
    id::WorkerId,
    store::worker_tokens::Grant,
    worker::{deps::Deps, owner::not_started, turn::Job},
};

/// How often the run checks whether a worker has taken the turn, and announces the turn to the other replicas
/// again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pods tried for one turn, one after another, if each is gone before it takes the turn.
const PODS_MAX: usize = 3;

/// Starts a worker for this turn, and holds the turn meanwhile.
pub(in crate::worker) async fn serve(deps: &Deps, pods: &Pods, mut job: Job) {
    // A turn that waits for its pod frees its slot for turns that can run.
    let _start = pods.start_place().inspect(|_| job.reach.free_slot());
    let start = Start::new(deps, pods, &job);
    let Err(obstacle) = unless_called_off(&mut job, start.bring_about()).await;
    match obstacle {
        // The worker has taken the turn.
        Obstacle::Halted(halt) if halt != Halt::Interrupted => {}
        Obstacle::Failed { .. } => {
            start.give_up();
            not_started(deps, &job, obstacle, None).await;
        }
        Obstacle::Lapsed => {
            start.give_up();
            let obstacle = start.waited_for().unwrap_or(Obstacle::Lapsed);
            not_started(deps, &job, obstacle, None).await;
        }
        obstacle => not_started(deps, &job, obstacle, None).await,
    }
}

/// The state of one turn's start.
struct Start<'a> {
    deps: &'a Deps,
    pods: &'a Pods,
    order: PodOrder,
    template: Option<PodTemplate>,
    turn: (crate::id::TurnId, i32),
    /// What the turn waits for now: the reason of a last word, and the detail for operators.
    waits_for: Mutex<Option<(String, String)>>,
    /// The pod created for this turn, if any.
    made: Mutex<Option<String>>,
}

/// Why following a pod ended.
enum FollowedPod {
    /// The pod served before and is gone or leaving; another pod may serve.
    Stale,
    /// The turn's start has failed.
    Failed(Obstacle),
}

impl<'a> Start<'a> {
    fn new(deps: &'a Deps, pods: &'a Pods, job: &Job) -> Self {
        let order = PodOrder {
            worker: WorkerId(deps.store.clock().mint()),
            agent: job.agent.clone(),
            conversation: job.claim.conversation,
            replica: deps.store.replica(),
            // Minted only when a pod is created.
            token: Token(String::new()),
        };
        let template = job.agent.spec.pod.clone();
        let turn = (job.claim.turn, job.claim.epoch);
        Start { deps, pods, order, template, turn, waits_for: Mutex::default(), made: Mutex::default() }
    }

    /// Runs until interrupted: at best because a worker has taken the turn.
    async fn bring_about(&self) -> Result<Infallible, Obstacle> {
        self.wait_for("the cluster cannot be reached", String::new());
        let mut link = self.pods.link();
        // The list of existing pods must be complete once.
        let _ = link.wait_for(|link| *link == WatchLink::Whole).await;
        for _ in 0..PODS_MAX {
            let (seen, is_made) = match self.pods.of_conversation(self.order.conversation) {
                Some(seen) if self.can_serve(&seen.borrow()) => (seen, false),
                older => {
                    if let Some(older) = older {
                        self.pods.bury(&older.borrow().name);
                    }
                    (self.create().await?, true)
                }
            };
            match self.follow(seen, is_made).await {
                FollowedPod::Stale => {}
                FollowedPod::Failed(obstacle) => return Err(obstacle),
            }
        }
        Err(could_not("its pods were gone before they could take it", String::new()))
    }

    /// Whether the pod may serve the turn: a worker of another revision is offered no such turn.
    fn can_serve(&self, seen: &Seen) -> bool {
        seen.agent == (self.order.agent.name.clone(), self.order.agent.revision)
    }

    /// Creates a pod, and retries until it succeeds or the refusal is final.
    async fn create(&self) -> Result<watch::Receiver<Seen>, Obstacle> {
        let order = PodOrder { token: self.let_in().await?, ..self.order.clone() };
        let mut pause = Pause::default();
        loop {
            match self.pods.create(&order).await {
                Ok(seen) => {
                    *self.made.lock() = Some(seen.borrow().name.clone());
                    return Ok(seen);
                }
                Err(Refusal { message, detail, may_pass: false, .. }) => {
                    return Err(could_not(message, detail));
                }
                Err(Refusal { message, detail, after, .. }) => {
                    tracing::info!(why = detail, "the cluster created no pod; trying again");
                    self.wait_for(message, detail);
                    pause.take(after).await;
                }
            }
        }
    }

    /// Mints the token with which the pod's worker will call the gateway.
    async fn let_in(&self) -> Result<Token, Obstacle> {
        let (agent, conversation) = (self.order.agent.name.clone(), Some(self.order.conversation));
        let grant = Grant { agent, conversation, expires_at: None };
        let mut pause = Pause::default();
        loop {
            match self.deps.store.mint_worker_token(&grant).await {
                Ok(token) => return Ok(Token(token)),
                Err(why) if why.is_away() => pause.take(None).await,
                Err(why) => {
                    return Err(could_not("the token of its worker could not be created", why.to_string()));
                }
            }
        }
    }

    /// Follows a pod until it cannot serve this turn.
    async fn follow(&self, mut seen: watch::Receiver<Seen>, is_made: bool) -> FollowedPod {
        let patience = self.template.as_ref().map_or(Duration::ZERO, |template| template.wait_for_node.0);
        let mut nodeless_since: Option<Instant> = None;
        loop {
            let now = seen.borrow_and_update().clone();
            let mut node_until = None;
            match now.standing {
                PodStanding::Running => {
                    nodeless_since = None;
                    self.wait_for("its worker has not called yet", now.name);
                    self.show();
                }
                PodStanding::Waiting(Wait::Start) => self.wait_for("its pod has not started yet", now.name),
                PodStanding::Waiting(Wait::Node(ending)) => {
                    let until = *nodeless_since.get_or_insert_with(Instant::now) + patience;
                    if until <= Instant::now() {
                        return FollowedPod::Failed(ended(&ending));
                    }
                    self.wait_for(&ending.cause.to_string(), ending.detail);
                    node_until = Some(until);
                }
                PodStanding::Leaving(_) | PodStanding::Ended(_) if !is_made => return FollowedPod::Stale,
                PodStanding::Leaving(ending) | PodStanding::Ended(ending) => {
                    return FollowedPod::Failed(ended(&ending));
                }
            }
            tokio::select! {
                changed = seen.changed() => if changed.is_err() {
                    let last = seen.borrow().standing.clone();
                    return match last {
                        PodStanding::Ended(ending) if is_made => FollowedPod::Failed(ended(&ending)),
                        _ if is_made => FollowedPod::Failed(ended(&Ending::deleted())),
                        _ => FollowedPod::Stale,
                    };
                },
                () = sleep_until(node_until.unwrap_or_else(Instant::now)), if node_until.is_some() => {}
                () = self.until_taken() => return FollowedPod::Failed(Obstacle::Halted(Halt::Lost)),
            }
        }
    }

    /// Waits until another replica holds the turn, or it is over.
    async fn until_taken(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.deps.store.is_over(self.turn.0, self.turn.1).await {
                Ok(true) => return,
                Ok(false) => self.show(),
                Err(_) => {}
            }
        }
    }

    /// Rings the doorbell, so that the replica this worker calls looks for the turn.
    fn show(&self) {
        self.deps.store.wake().queue.kept(self.turn.0, self.order.conversation);
    }

    fn wait_for(&self, what: &str, detail: String) {
        *self.waits_for.lock() = Some((what.to_owned(), detail));
    }

    /// What the turn waited for when its startup clock lapsed.
    fn waited_for(&self) -> Option<Obstacle> {
        let (what, detail) = self.waits_for.lock().take()?;
        let message = format!("The worker for this agent could not be started in time: {what}.");
        Some(Obstacle::Failed { message, detail: Some(detail).filter(|detail| !detail.is_empty()) })
    }

    /// Deletes the pod created for this turn: it will serve nobody.
    fn give_up(&self) {
        let Some(name) = self.made.lock().take() else { return };
        let has_ended = self.pods.is_ended(&name);
        if !has_ended {
            self.pods.bury(&name);
        }
    }
}

fn could_not(why: &str, detail: String) -> Obstacle {
    let message = format!("The worker for this agent could not be started: {why}.");
    Obstacle::Failed { message, detail: Some(detail).filter(|detail| !detail.is_empty()) }
}

fn ended(ending: &Ending) -> Obstacle {
    could_not(&ending.cause.to_string(), ending.detail.clone())
}
