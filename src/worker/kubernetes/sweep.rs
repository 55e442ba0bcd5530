//! The sweep: removes pods that nobody needs, on any replica.
//!
//! A pod is needed while its conversation has a turn in flight, and for the agent's idle time after. Nothing is
//! removed while the store is away. A replica counts idle time from its own first sight of a pod, so a new pod
//! whose turn was just claimed is safe.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    pods::{Pods, Seen},
    verdict::{Cause, PodStanding},
};
use crate::{
    agent::Runtime,
    id::ConversationId,
    store::{Store, StoreError},
};

const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Added to the agent's idle time: the worker leaves by itself before.
pub(super) const IDLE_MARGIN: Duration = Duration::from_secs(10);
/// How long a failed pod stays for operators to inspect.
pub(super) const FAILED_KEPT: Duration = Duration::from_secs(300);

/// Sweeps until cancelled.
pub async fn sweep_on(store: Store, pods: Pods, until: CancellationToken) {
    let mut idle = Idle::default();
    while until.run_until_cancelled(sleep(SWEEP_EVERY.mul_f64(rand::random_range(0.8..1.2)))).await.is_some()
    {
        if let Err(why) = sweep(&store, &pods, &mut idle).await {
            tracing::debug!(%why, "the sweep of idle worker pods failed; trying again");
        }
    }
}

/// One pass: deletes the pods that nobody needs.
async fn sweep(store: &Store, pods: &Pods, idle: &mut Idle) -> Result<(), StoreError> {
    let all = pods.all();
    if all.is_empty() {
        return Ok(());
    }
    let conversations: Vec<ConversationId> = all.iter().map(|seen| seen.conversation).collect();
    let busy = store.conversations_in_flight(&conversations).await?;
    for seen in all.iter().filter(|seen| !matches!(seen.standing, PodStanding::Ended(_))) {
        let idle_ttl = idle_ttl(store, seen).await?;
        idle.ttls.insert(seen.name.clone(), idle_ttl);
    }
    for doomed in idle.judge(&all, &busy, Instant::now()) {
        tracing::info!(pod = doomed, "a worker's pod is no longer needed; the pod is deleted");
        pods.bury(&doomed);
    }
    Ok(())
}

/// How long the pod's agent keeps an idle worker; zero for an unknown agent.
async fn idle_ttl(store: &Store, seen: &Seen) -> Result<Duration, StoreError> {
    let (agent, revision) = &seen.agent;
    let agent = store.agent_at(agent, *revision).await?;
    let spec = agent.map(|agent| agent.spec).filter(|spec| spec.runtime == Runtime::Kubernetes);
    Ok(spec.map_or(Duration::ZERO, |spec| spec.idle_ttl.0))
}

/// Since when each pod has had no turn, as this replica saw it.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: HashMap<String, Instant>,
    ttls: HashMap<String, Duration>,
}

impl Idle {
    /// The pods to delete. Pure, apart from its memory.
    pub(super) fn judge(
        &mut self,
        all: &[Seen],
        busy: &HashSet<ConversationId>,
        now: Instant,
    ) -> Vec<String> {
        let known: HashSet<&str> = all.iter().map(|seen| seen.name.as_str()).collect();
        self.since.retain(|name, _| known.contains(name.as_str()));
        self.ttls.retain(|name, _| known.contains(name.as_str()));
        let mut doomed = Vec::new();
        for seen in all {
            let is_over = match &seen.standing {
                // A clean exit leaves nothing to inspect.
                PodStanding::Ended(ending) if ending.cause == Cause::Exit(0) => true,
                PodStanding::Ended(_) => now.saturating_duration_since(seen.since) >= FAILED_KEPT,
                // The pod is already being deleted.
                PodStanding::Leaving(_) => false,
                PodStanding::Waiting(_) | PodStanding::Running if busy.contains(&seen.conversation) => {
                    self.since.remove(&seen.name);
                    false
                }
                PodStanding::Waiting(_) | PodStanding::Running => {
                    let since = *self.since.entry(seen.name.clone()).or_insert(now);
                    let kept = self.ttls.get(&seen.name).copied().unwrap_or_default() + IDLE_MARGIN;
                    now.saturating_duration_since(since) >= kept
                }
            };
            if is_over {
                doomed.push(seen.name.clone());
            }
        }
        doomed
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        id::WorkerId,
        worker::kubernetes::verdict::{Ending, Wait},
    };

    fn seen(n: u128, standing: PodStanding, since: Instant) -> Seen {
        Seen {
            name: format!("pod-{n}"),
            worker: WorkerId(Uuid::from_u128(n)),
            conversation: ConversationId(Uuid::from_u128(n)),
            agent: ("a".into(), 1),
            token_hash: None,
            standing,
            since,
        }
    }

    fn ended(cause: Cause) -> PodStanding {
        PodStanding::Ended(Ending { cause, detail: String::new() })
    }

    #[test]
    fn a_pod_without_a_turn_goes_when_its_agent_would_not_keep_it_any_longer() {
        let (start, ttl) = (Instant::now(), Duration::from_secs(600));
        let mut idle = Idle::default();
        let all = [seen(1, PodStanding::Running, start), seen(2, PodStanding::Waiting(Wait::Start), start)];
        let both: HashSet<_> = all.iter().map(|seen| seen.conversation).collect();
        idle.ttls = all.iter().map(|seen| (seen.name.clone(), ttl)).collect();
        assert!(idle.judge(&all, &both, start + 2 * ttl).is_empty(), "they have turns");
        let idle_from = start + 2 * ttl;
        assert!(idle.judge(&all, &HashSet::new(), idle_from).is_empty(), "they may get another one");
        assert!(
            idle.judge(&all, &HashSet::new(), idle_from + ttl).is_empty(),
            "their workers leave by themselves"
        );
        let first: HashSet<_> = [all[0].conversation].into();
        assert_eq!(idle.judge(&all, &first, idle_from + ttl + IDLE_MARGIN), ["pod-2"]);
        // The first had a turn meanwhile, so its idle time starts again.
        assert_eq!(idle.judge(&all, &HashSet::new(), idle_from + 2 * ttl), ["pod-2"]);
    }

    #[test]
    fn a_pod_that_failed_can_be_looked_at_for_a_while() {
        let start = Instant::now();
        let all = [
            seen(1, ended(Cause::Exit(0)), start),
            seen(2, ended(Cause::Image), start),
            seen(3, PodStanding::Leaving(Ending::deleted()), start),
        ];
        let mut idle = Idle::default();
        assert_eq!(idle.judge(&all, &HashSet::new(), start), ["pod-1"]);
        assert_eq!(idle.judge(&all, &HashSet::new(), start + FAILED_KEPT), ["pod-1", "pod-2"]);
    }
}
