//! The pods of a fleet, as one replica sees them through its watch.

use std::time::Duration;

use lastword::{
    agent::AgentSpec,
    id::{ConversationId, ReplicaId, WorkerId},
    store::turns::Agent,
    task::{Supervisor, TaskKind},
    worker::kubernetes::{
        cluster::Cluster,
        manifest::{PodOrder, Token, name_of},
        pods::{Ended, Fleet, Pods, Seen, WatchLink},
        verdict::{PodStanding, Wait},
        watch::{bury_on, watch_on},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::server::ApiServer;

/// A last word's reason must be known this soon after the cluster told.
const SOON: Duration = Duration::from_secs(1);
/// Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// One replica's eyes on a scripted cluster.
struct Eyes {
    server: ApiServer,
    pods: Pods,
    supervisor: Supervisor,
}

impl Eyes {
    async fn open() -> Eyes {
        Eyes::on(ApiServer::start()).await
    }

    async fn on(server: ApiServer) -> Eyes {
        let eyes = Eyes::unwatched(server);
        eyes.watch();
        eyes.whole().await;
        eyes
    }

    fn unwatched(server: ApiServer) -> Eyes {
        let mut config = kube::Config::new(server.url().parse().unwrap());
        config.default_namespace = "agents".to_owned();
        let cluster = Cluster::new(config, None).unwrap();
        let fleet = Fleet {
            name: "lastword".into(),
            gateway_url: "http://gateway:8080".into(),
            owner: Some("lastword".into()),
        };
        Eyes { server, pods: Pods::new(cluster, fleet), supervisor: Supervisor::new() }
    }

    fn watch(&self) {
        let hard = self.supervisor.hard().clone();
        self.supervisor.spawn(TaskKind::Replica, "watch", watch_on(self.pods.clone(), hard.clone()));
        self.supervisor.spawn(TaskKind::Replica, "bury", bury_on(self.pods.clone(), hard));
    }

    async fn whole(&self) {
        until(&mut self.pods.link(), "the watch is whole", |link| *link == WatchLink::Whole).await;
    }

    /// A pod for conversation `n`.
    async fn made(&self, n: u128) -> (String, watch::Receiver<Seen>) {
        let seen = self.pods.create(&order(n)).await.unwrap();
        (name_of(WorkerId(Uuid::from_u128(n))), seen)
    }

    async fn ends(&self) -> Vec<Ended> {
        timeout(PATIENCE, self.pods.ends()).await.expect("an end")
    }
}

impl Drop for Eyes {
    fn drop(&mut self) {
        self.supervisor.hard().cancel();
    }
}

fn order(n: u128) -> PodOrder {
    let spec = json!({ "runtime": "kubernetes", "command": ["agent"], "pod": { "image": "registry.example/agent:1" } });
    let spec: AgentSpec = serde_json::from_value(spec).unwrap();
    PodOrder {
        worker: WorkerId(Uuid::from_u128(n)),
        agent: Agent::new("support", 1, spec),
        conversation: ConversationId(Uuid::from_u128(n)),
        replica: ReplicaId(Uuid::from_u128(99)),
        token: Token("t".into()),
    }
}

async fn until<T: Clone>(seen: &mut watch::Receiver<T>, what: &str, is_so: impl FnMut(&T) -> bool) -> T {
    let waiting = timeout(PATIENCE, seen.wait_for(is_so));
    waiting.await.unwrap_or_else(|_| panic!("never: {what}")).unwrap().clone()
}

async fn stands(
    seen: &mut watch::Receiver<Seen>,
    what: &str,
    is_so: impl Fn(&PodStanding) -> bool,
) -> PodStanding {
    until(seen, what, |seen| is_so(&seen.standing)).await.standing
}

#[tokio::test]
async fn each_reason_is_known_within_a_second_of_its_event() {
    let eyes = Eyes::open().await;
    let waiting = |reason: &str| ("Pending", json!({"waiting": {"reason": reason, "message": "m"}}));
    let ended = |end: Value| ("Failed", json!({"terminated": end}));
    let mut slowest = Duration::ZERO;
    for (n, (cause, (phase, state))) in [
        ("image", waiting("ErrImagePull")),
        ("image", waiting("ImagePullBackOff")),
        ("config", waiting("CreateContainerConfigError")),
        ("program", ended(json!({"exitCode": 128, "reason": "StartError"}))),
        ("oom", ended(json!({"exitCode": 137, "reason": "OOMKilled"}))),
        ("exit", ended(json!({"exitCode": 3, "reason": "Error"}))),
        ("node_lost", ended(json!({"exitCode": 137, "reason": "ContainerStatusUnknown"}))),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, _) = eyes.made(n as u128 + 1).await;
        let told = Instant::now();
        eyes.server.world.set_worker(&name, phase, state);
        let ends = eyes.ends().await;
        slowest = slowest.max(told.elapsed());
        assert_eq!((ends.len(), ends[0].name.as_str()), (1, name.as_str()));
        assert_eq!(ends[0].ending.cause.as_str(), cause);
    }
    for (n, (cause, reason)) in
        [("evicted", "Evicted"), ("deadline", "DeadlineExceeded"), ("node_lost", "NodeLost")]
            .into_iter()
            .enumerate()
    {
        let (name, _) = eyes.made(n as u128 + 101).await;
        let told = Instant::now();
        eyes.server.world.set_status(&name, json!({"phase": "Failed", "reason": reason}));
        let ends = eyes.ends().await;
        slowest = slowest.max(told.elapsed());
        assert_eq!(ends[0].ending.cause.as_str(), cause);
    }
    println!("slowest of 10 reasons: {slowest:?}");
    assert!(slowest < SOON, "{slowest:?}");
}

#[tokio::test]
async fn a_pod_that_is_deleted_by_somebody_has_ended() {
    let eyes = Eyes::open().await;
    let (name, mut seen) = eyes.made(1).await;
    eyes.server.world.set_worker(&name, "Running", json!({"running": {}}));
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
    eyes.server.world.mark_deleted(&name);
    stands(&mut seen, "it is told to leave", |it| matches!(it, PodStanding::Leaving(_))).await;
    assert!(eyes.pods.of_conversation(ConversationId(Uuid::from_u128(1))).is_none(), "no turn goes there");
    let told = Instant::now();
    eyes.server.world.remove(&name);
    assert_eq!(eyes.ends().await[0].ending.cause.as_str(), "deleted");
    assert!(told.elapsed() < SOON);
    assert!(eyes.pods.all().is_empty());
}

#[tokio::test]
async fn no_room_is_told_and_is_no_end() {
    let eyes = Eyes::open().await;
    let (name, mut seen) = eyes.made(1).await;
    let message = "0/3 nodes are available: 3 Insufficient cpu.";
    let condition =
        json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    eyes.server.world.set_status(&name, json!({"phase": "Pending", "conditions": [condition]}));
    let told = Instant::now();
    let is_nodeless = |it: &PodStanding| matches!(it, PodStanding::Waiting(Wait::Node(_)));
    let PodStanding::Waiting(Wait::Node(ending)) = stands(&mut seen, "no node", is_nodeless).await else {
        panic!()
    };
    assert!(told.elapsed() < SOON);
    assert!(ending.detail.contains(message));
    // A node came.
    eyes.server.world.set_worker(&name, "Running", json!({"running": {}}));
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
}

#[tokio::test]
async fn a_watch_that_was_cut_goes_on_where_it_was() {
    let eyes = Eyes::open().await;
    let (name, mut seen) = eyes.made(1).await;
    for _ in 0..3 {
        eyes.server.world.cut_watches();
    }
    eyes.server.world.set_worker(&name, "Running", json!({"running": {}}));
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
    let lists = eyes.server.world.asked("GET /api/v1/namespaces/agents/pods?");
    let lists = lists.iter().filter(|asked| !asked.contains("watch=true")).count();
    assert_eq!(lists, 1, "nothing was listed again");
}

#[tokio::test]
async fn a_watch_that_is_too_old_lists_anew_and_finds_what_it_missed() {
    for is_by_status in [false, true] {
        let eyes = Eyes::open().await;
        if is_by_status {
            eyes.server.world.say_gone_by_status();
        }
        let (gone, mut gone_seen) = eyes.made(1).await;
        let (kept, mut kept_seen) = eyes.made(2).await;
        for (name, seen) in [(&gone, &mut gone_seen), (&kept, &mut kept_seen)] {
            eyes.server.world.set_worker(name, "Running", json!({"running": {}}));
            stands(seen, "it runs", |it| *it == PodStanding::Running).await;
        }
        // One goes, unseen, and what led to it is forgotten.
        eyes.server.world.remove_unseen(&gone);
        eyes.server.world.cut_watches();
        let ends = eyes.ends().await;
        assert_eq!(
            (ends.len(), ends[0].name.as_str(), ends[0].ending.cause.as_str()),
            (1, gone.as_str(), "deleted")
        );
        assert_eq!(kept_seen.borrow().standing, PodStanding::Running);
        eyes.whole().await;
        eyes.server.world.set_worker(&kept, "Failed", json!({"terminated": {"exitCode": 1}}));
        assert_eq!(eyes.ends().await[0].name, kept);
    }
}

#[tokio::test]
async fn a_server_that_was_away_is_found_again_and_nothing_was_made_up_meanwhile() {
    let eyes = Eyes::open().await;
    let (name, mut seen) = eyes.made(1).await;
    eyes.server.world.set_worker(&name, "Running", json!({"running": {}}));
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
    eyes.server.go_away();
    until(&mut eyes.pods.link(), "the link is broken", |link| matches!(link, WatchLink::Broken(_))).await;
    let refusal = eyes.pods.create(&order(2)).await.unwrap_err();
    assert!(refusal.may_pass && refusal.message == "the cluster cannot be reached", "{refusal:?}");
    assert_eq!(eyes.pods.all().len(), 1, "a pod that was not made is not there");
    assert_eq!(seen.borrow().standing, PodStanding::Running, "silence is no news");
    // It fails meanwhile.
    eyes.server.world.set_worker(&name, "Failed", json!({"terminated": {"exitCode": 7}}));
    let back = Instant::now();
    eyes.server.come_back();
    let ends = eyes.ends().await;
    println!("known {:?} after the server came back", back.elapsed());
    assert_eq!(ends[0].ending.cause.to_string(), "exit code 7");
    eyes.whole().await;
    eyes.made(2).await;
}

#[tokio::test]
async fn a_gateway_that_starts_while_the_server_is_away_waits_for_it() {
    let server = ApiServer::start();
    server.go_away();
    let eyes = Eyes::unwatched(server);
    eyes.watch();
    let is_tried = |link: &WatchLink| matches!(link, WatchLink::Broken(why) if why != "not asked yet");
    until(&mut eyes.pods.link(), "it was tried", is_tried).await;
    eyes.server.come_back();
    eyes.whole().await;
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let eyes = Eyes::open().await;
    let world = &eyes.server.world;
    let quota =
        "pods \"x\" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=5, limited: pods=5";
    for (code, reason, message, may_pass) in [
        (403, "Forbidden", quota, true),
        (403, "Forbidden", "violates PodSecurity \"restricted:latest\"", false),
        (409, "Conflict", "the object has been modified", true),
        (422, "Invalid", "spec.containers[0].image: Required value", false),
        (429, "TooManyRequests", "slow down", true),
        (500, "InternalError", "failed calling webhook", true),
    ] {
        world.answer_next(code, reason, message);
        let refusal = eyes.pods.create(&order(1)).await.unwrap_err();
        assert_eq!(refusal.may_pass, may_pass, "{code} {message}");
        assert!(refusal.detail.contains(message));
        assert!(eyes.pods.all().is_empty(), "a pod that was refused is not there");
    }
    world.answer_next_after(429, 3);
    assert_eq!(eyes.pods.create(&order(1)).await.unwrap_err().after, Some(Duration::from_secs(3)));
    eyes.made(1).await;
    // Asked for once more, as when an answer was lost: it is the same pod.
    eyes.made(1).await;
    assert_eq!(world.names().len(), 1);
}

#[tokio::test]
async fn a_pod_is_made_as_its_owners_and_of_the_right_fleet() {
    let eyes = Eyes::open().await;
    let (name, _) = eyes.made(1).await;
    let pod = eyes.server.world.pod(&name).unwrap();
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "uid-of-lastword");
    // One of another fleet is not ours to see.
    let mut other = pod.clone();
    other["metadata"]["name"] = json!("other");
    other["metadata"]["labels"]["lastword/fleet"] = json!("other");
    eyes.server.world.create(other).unwrap();
    let (_, mut seen) = eyes.made(2).await;
    let second = name_of(WorkerId(Uuid::from_u128(2)));
    eyes.server.world.set_worker(&second, "Running", json!({"running": {}}));
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
    assert_eq!(eyes.pods.all().len(), 2);
}

#[tokio::test]
async fn what_is_to_be_deleted_is_deleted_also_when_the_server_was_away() {
    let eyes = Eyes::open().await;
    let (name, _) = eyes.made(1).await;
    eyes.server.go_away();
    eyes.pods.bury(&name);
    until(&mut eyes.pods.link(), "the link is broken", |link| matches!(link, WatchLink::Broken(_))).await;
    eyes.server.come_back();
    assert_eq!(eyes.ends().await[0].ending.cause.as_str(), "deleted");
    assert!(eyes.server.world.names().is_empty());
}

#[tokio::test]
async fn another_replica_sees_the_pods_that_were_there_before_it() {
    let eyes = Eyes::open().await;
    let (name, _) = eyes.made(1).await;
    eyes.server.world.set_worker(&name, "Running", json!({"running": {}}));
    let server = ApiServer::start();
    server.world.create(eyes.server.world.pod(&name).unwrap()).unwrap();
    server.world.set_worker(&name, "Running", json!({"running": {}}));
    let other = Eyes::on(server).await;
    let mut seen = other.pods.of_conversation(ConversationId(Uuid::from_u128(1))).expect("the pod");
    stands(&mut seen, "it runs", |it| *it == PodStanding::Running).await;
    assert_eq!(seen.borrow().agent, ("support".to_owned(), 1));
}
