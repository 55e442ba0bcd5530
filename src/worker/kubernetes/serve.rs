//! A turn that needs a pod: this replica holds it as `starting` until the worker inside takes it.
//!
//! ```text
//! claimed ─► a living pod of its conversation? ─no─► asked for, again and again where that may help
//!                 │ yes                                        │
//!                 └────────────► followed ◄─────────────────────┘
//!                                   │ its worker claims the turn, at any replica: this run ends without a word
//!                                   │ the pod fails, the startup clock lapses, a cancel: the last word, with why
//! ```
//! Owns the bringing about, within the turn's startup clock, and the reason where it fails. Refuses to count a pod
//! that served before as this turn's start: where it dies before it took the turn, a fresh one is made.
//!
//! From the moment that the worker has the turn this file knows nothing of it: see [`super::ends`].

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::Duration,
};

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

/// How often it is looked whether somebody has the turn, and the replica that its worker calls is told of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pods that one turn is waited for with, one after another, where each was gone before it took the turn.
const PODS_MAX: usize = 3;

/// Brings about a worker for this turn, and holds the turn meanwhile.
pub(in crate::worker) async fn serve(deps: &Deps, pods: &Pods, mut job: Job) {
    // A turn that waits for its pod takes no slot from those that run.
    let _start = pods.start_place().inspect(|_| job.reach.free_slot());
    let start = Start::new(deps, pods, &job);
    let Err(obstacle) = unless_called_off(&mut job, start.bring_about()).await;
    match obstacle {
        // Its worker has it.
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

/// What a turn's start knows.
struct Start<'a> {
    deps: &'a Deps,
    pods: &'a Pods,
    order: PodOrder,
    template: Option<PodTemplate>,
    turn: (crate::id::TurnId, i32),
    /// What it waits for, in the words of a last word; with more for operators.
    waits_for: Mutex<Option<(String, String)>>,
    /// The pod that was made for this turn.
    made: Mutex<Option<String>>,
}

/// A pod that was followed to where no turn can follow.
enum FollowedPod {
    /// It served before, and is gone or going: another one may serve.
    Stale,
    /// It was made for this turn.
    Failed(Obstacle),
}

impl<'a> Start<'a> {
    fn new(deps: &'a Deps, pods: &'a Pods, job: &Job) -> Self {
        let order = PodOrder {
            worker: WorkerId(deps.store().clock().mint()),
            agent: job.agent.clone(),
            conversation: job.claim.conversation,
            replica: deps.store().replica(),
            // Minted when there is to be a pod.
            token: Token(String::new()),
        };
        let template = job.agent.spec.pod.clone();
        let turn = (job.claim.turn, job.claim.epoch);
        Start { deps, pods, order, template, turn, waits_for: Mutex::default(), made: Mutex::default() }
    }

    /// Goes on until something comes between: at best, that the worker takes the turn.
    async fn bring_about(&self) -> Result<Infallible, Obstacle> {
        self.wait_for("the cluster cannot be reached", String::new());
        let mut link = self.pods.link();
        // Which pods there are must be known once.
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

    /// Whether a turn can go to this pod: the worker of an older revision is offered none.
    fn can_serve(&self, seen: &Seen) -> bool {
        seen.agent == (self.order.agent.name.clone(), self.order.agent.revision)
    }

    /// Asks for a pod until there is one, or there never will be.
    async fn create(&self) -> Result<watch::Receiver<Seen>, Obstacle> {
        let order = PodOrder { token: self.let_in().await?, ..self.order.clone() };
        let mut pause = Pause::default();
        loop {
            match self.pods.create(&order).await {
                Ok(seen) => {
                    *lock(&self.made) = Some(seen.borrow().name.clone());
                    return Ok(seen);
                }
                Err(Refusal { message, detail, may_pass: false, .. }) => {
                    return Err(could_not(message, detail));
                }
                Err(Refusal { message, detail, after, .. }) => {
                    tracing::info!(why = detail, "no pod yet; it is asked for again");
                    self.wait_for(message, detail);
                    pause.take(after).await;
                }
            }
        }
    }

    /// Lets the worker in that will call home; what it shows.
    async fn let_in(&self) -> Result<Token, Obstacle> {
        let (agent, conversation) = (self.order.agent.name.clone(), Some(self.order.conversation));
        let grant = Grant { agent, conversation, expires_at: None };
        let mut pause = Pause::default();
        loop {
            match self.deps.store().mint_worker_token(&grant).await {
                Ok(token) => return Ok(Token(token)),
                Err(why) if why.is_away() => pause.take(None).await,
                Err(why) => return Err(could_not("its worker could not be let in", why.to_string())),
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

    /// Until somebody else holds the turn.
    async fn until_taken(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.deps.store().is_over(self.turn.0, self.turn.1).await {
                Ok(true) => return,
                Ok(false) => self.show(),
                Err(_) => {}
            }
        }
    }

    /// Has the replica look that the worker calls, whichever that is.
    fn show(&self) {
        self.deps.store().wake().queue.kept(self.turn.0, self.order.conversation);
    }

    fn wait_for(&self, what: &str, detail: String) {
        *lock(&self.waits_for) = Some((what.to_owned(), detail));
    }

    /// What the turn was waiting for when its startup clock lapsed.
    fn waited_for(&self) -> Option<Obstacle> {
        let (what, detail) = lock(&self.waits_for).take()?;
        let message = format!("The worker for this agent could not be started in time: {what}.");
        Some(Obstacle::Failed { message, detail: Some(detail).filter(|detail| !detail.is_empty()) })
    }

    /// The pod that was made for this turn serves nobody.
    fn give_up(&self) {
        let Some(name) = lock(&self.made).take() else { return };
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
