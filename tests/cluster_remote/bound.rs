//! Workers of a single conversation, as a runtime starts them that creates a worker for each conversation.

use reqwest::StatusCode;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::{
    hand::{Hand, complete, delta},
    remote_agent,
    support::{Cluster, Host, HostPlan, PATIENCE, Turn, eventually},
    workers::{completed, failed},
};

/// Lets in whoever has this token, for this agent and conversation.
async fn grant(cluster: &Cluster, token: &str, agent: &str, conversation: &str) {
    let mut conn = database(cluster).await;
    sqlx::query("insert into worker_tokens (hash, agent, conversation_id) values (sha256($1), $2, $3::uuid)")
        .bind(token.as_bytes())
        .bind(agent)
        .bind(uuid(conversation))
        .execute(&mut conn)
        .await
        .unwrap();
}

async fn database(cluster: &Cluster) -> PgConnection {
    let url = cluster.postgres().url();
    PgConnection::connect(&url).await.unwrap()
}

fn uuid(id: &str) -> &str {
    id.split_once('_').unwrap().1
}

pub async fn a_worker_with_a_minted_token_serves_its_conversation_and_leaves_when_idle(cluster: &Cluster) {
    remote_agent(cluster, "pod", json!({})).await;
    let (turn, other) = (cluster.post(0, "pod", "hi").await, cluster.post(0, "pod", "hi").await);
    grant(cluster, "pod-token", "pod", &turn.conversation).await;
    let flags = ["--conversation", &turn.conversation, "--exit-when-idle", "4s"];
    let plan = HostPlan { token: "pod-token", flags: &flags, ..HostPlan::demo("pod", &[1]) };
    let mut host = Host::start(cluster, plan);
    assert_eq!(completed(&cluster.watch_all(&turn).await), "Hello! You said: hi");
    let next = cluster.post_in(1, &turn.conversation, "pod", "again").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "Hello! You said: again");
    assert!(host.wait_exit().await.success(), "{}", host.log());
    assert_eq!(cluster.get(0, &format!("/v1/turns/{}", other.id)).await["status"], "queued");
    cluster.cancel(0, &other).await;
}

/// With room for a second turn, and although turns never leave the host idle.
pub async fn a_host_that_retires_takes_no_new_turn_and_ends_those_that_run(cluster: &Cluster) {
    remote_agent(cluster, "old", json!({})).await;
    let flags = ["--retire-after", "3s", "--concurrency", "2"];
    let plan = HostPlan { flags: &flags, ..HostPlan::demo("old", &[0]) };
    let mut host = Host::start(cluster, plan);
    let running = cluster.post(0, "old", "/slow 80").await;
    cluster.until(0, &running, "delta", PATIENCE).await;
    eventually("the host retires", async || host.log().contains("old enough to retire").then_some(())).await;
    let late = cluster.post(0, "old", "late").await;
    let events = cluster.watch_all(&running).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
    assert!(host.wait_exit().await.success(), "{}", host.log());
    assert_eq!(cluster.get(0, &format!("/v1/turns/{}", late.id)).await["status"], "queued");
    cluster.cancel(0, &late).await;
}

/// No gateway is there, so nothing tells the host that its turns have ended.
pub async fn a_host_that_reaches_no_gateway_leaves_when_told(cluster: &Cluster) {
    remote_agent(cluster, "lonely", json!({})).await;
    let nobody = ["http://127.0.0.1:1".to_owned()];
    let mut host = Host::at(cluster, &nobody, HostPlan::demo("lonely", &[]));
    eventually("it calls", async || host.log().contains("cannot be reached").then_some(())).await;
    host.terminate();
    assert!(host.wait_exit().await.success(), "{}", host.log());
}

pub async fn a_minted_token_opens_nothing_else(cluster: &Cluster) {
    remote_agent(cluster, "cell", json!({})).await;
    remote_agent(cluster, "cell-2", json!({})).await;
    let (turn, other) = (cluster.post(0, "cell", "x").await, cluster.post(0, "cell", "x").await);
    grant(cluster, "cell-token", "cell", &turn.conversation).await;
    let register = async |agent: &str, conversation: Option<&str>| {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = http.post(format!("{}/v1/worker/register", cluster.url(0))).bearer_auth("cell-token");
        asked.json(&json!({"agent": agent, "conversation_id": conversation})).send().await.unwrap().status()
    };
    assert_eq!(register("cell", Some(&turn.conversation)).await, StatusCode::OK);
    assert_eq!(register("cell", None).await, StatusCode::OK, "it implies the conversation");
    assert_eq!(register("cell", Some(&other.conversation)).await, StatusCode::FORBIDDEN);
    assert_eq!(register("cell-2", None).await, StatusCode::FORBIDDEN);
    let revoke = sqlx::query("delete from worker_tokens where agent = 'cell'");
    revoke.execute(&mut database(cluster).await).await.unwrap();
    assert_eq!(register("cell", Some(&turn.conversation)).await, StatusCode::UNAUTHORIZED);
    for turn in [turn, other] {
        cluster.cancel(0, &turn).await;
    }
}

pub async fn a_turn_that_a_replica_keeps_for_its_worker_goes_to_it(cluster: &Cluster) {
    remote_agent(cluster, "kept", json!({})).await;
    let turn = cluster.post(0, "kept", "x").await;
    keep(cluster, &turn).await;
    let free = Hand::register(cluster, 0, "kept").await;
    assert!(free.is_offered_nothing(0).await, "it waits for a worker of its own");
    let mut bound = Hand::register(cluster, 1, "kept").await;
    let body = json!({"agent": "kept", "conversation_id": turn.conversation});
    let (status, answer) = bound.call(1, "register", body).await;
    assert_eq!((status, &answer["conversation_id"]), (StatusCode::OK, &json!(turn.conversation)));
    bound.id = answer["worker_id"].as_str().unwrap().to_owned();
    let offer = bound.take(1).await;
    assert_eq!((offer.turn.as_str(), offer.epoch), (turn.id.as_str(), 1), "the same attempt goes on");
    assert_eq!(bound.say(1, &offer, 1, &[delta("a"), complete()]).await.0, StatusCode::OK);
    assert_eq!(completed(&cluster.watch_all(&turn).await), "a");
}

/// Does what a replica does that brings a worker about: it holds the turn as `starting`. Replica 0 is not
/// asked, and would disown what it does not know: so the row is held in its name for a moment only.
async fn keep(cluster: &Cluster, turn: &Turn) {
    let replicas = cluster.get(0, "/v1/replicas?limit=200").await;
    let holder = replicas["items"][0]["id"].as_str().unwrap().to_owned();
    let kept = sqlx::query(
        "update inflight set phase = 'starting', clock = 'startup', epoch = 1, replica = $2::uuid,
                claimed_at = clock_timestamp(), deadline = least(cap_at, clock_timestamp() + interval '60 s')
          where turn_id = $1::uuid and phase = 'queued'",
    )
    .bind(uuid(&turn.id))
    .bind(uuid(&holder))
    .execute(&mut database(cluster).await)
    .await
    .unwrap();
    assert_eq!(kept.rows_affected(), 1);
}

pub async fn whoever_knows_why_a_worker_ended_says_so(cluster: &Cluster) {
    remote_agent(cluster, "autopsy", json!({})).await;
    let hand = Hand::register(cluster, 0, "autopsy").await;
    let turn = cluster.post(0, "autopsy", "x").await;
    let offer = hand.take(0).await;
    assert_eq!(hand.say(0, &offer, 1, &[delta("a")]).await.0, StatusCode::OK);
    cluster.until(1, &turn, "delta", PATIENCE).await;
    let said = sqlx::query(
        "update workers set state = 'ended', ended_at = now(), end_code = 'worker_exited',
                exit = 'The worker handling your request ran out of memory (limit 1GiB).'
          where id = $1::uuid",
    );
    said.bind(uuid(&hand.id)).execute(&mut database(cluster).await).await.unwrap();
    failed(&cluster.watch_all(&turn).await, "worker_exited", "out of memory");
    let (status, answer) = hand.call(0, "register", json!({"agent": "autopsy", "worker_id": hand.id})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("worker_gone")));
}
