//! Hunts for rules between replicas.

use std::{fs, time::Duration};

use lastword_devkit::postgres::StopMode;
use serde_json::json;
use tokio::task::block_in_place;

use super::{Session, uuid};
use crate::support::{Cluster, PATIENCE, eventually};

/// How long Postgres is away: longer than any count of beats that a free lock asks for, as a clock
/// would count it.
const AWAY: Duration = Duration::from_secs(5);
/// Beats of the judge while the other one is still away; fewer than a lock that nobody saw held asks for.
const BEATS: i64 = 4;
/// Turns that are due at once, and how long it may take: the longest sleep, and a margin in which a
/// pass of one page does not come again.
const DUE: usize = 2500;
const DUE_MAX: Duration = Duration::from_secs(9);

/// A replica stands still past its verdict; its turn is run again elsewhere. When it goes on, its
/// worker has said everything, and it hears that before it hears of the verdict.
pub async fn zombie(cluster: &Cluster) -> bool {
    let script = r#"echo '{"type":"ready"}'
while read -r line; do case "$line" in
  *'"type":"turn"'*'"attempt":1,'*) while [ ! -e go ]; do sleep 0.05; done
    echo '{"type":"delta","text":"zombie"}'; echo '{"type":"complete"}'; touch said;;
  *'"type":"turn"'*) echo '{"type":"delta","text":"heir"}'; while [ ! -e end ]; do sleep 0.05; done
    echo '{"type":"complete"}';;
  *) exit 0;; esac; done"#;
    let spec = json!({"runtime": "process", "command": ["sh", "-c", script], "retry": "safe"});
    cluster.put_agent("twofold", spec).await;
    let turn = cluster.post(0, "twofold", "hello").await;
    let still = cluster.worker_of(&turn).await.replica;
    let other = 1 - still;
    let workspace = cluster.workspace(&turn.conversation);
    let mut stream = cluster.stream(other, &turn.id, -1).await;
    cluster.freeze(still);
    while stream.until("started", PATIENCE).await.data["attempt"] != 2 {}
    fs::write(workspace.join("go"), "").unwrap();
    eventually("the old worker speaks", async || workspace.join("said").exists().then_some(())).await;
    cluster.thaw(still);
    eventually("it learns of its verdict", async || cluster.log(still).contains("judged lost").then_some(()))
        .await;
    fs::write(workspace.join("end"), "").unwrap();
    let told = format!("turn_events where turn_id = '{}' and data like '%zombie%'", uuid(&turn.id));
    let mut looker = Session::open(cluster).await;
    looker.until("select not exists (select from inflight)").await;
    looker.count(&told).await == 0
}

/// Postgres is away, and comes back while one replica is held up for a little longer.
pub async fn away_for_a_moment(cluster: &Cluster) -> bool {
    let (judge, other) = (0, 1);
    let beats_of = |i: usize| format!("select sum(beat_n) from replicas where pid = {}", cluster.pid(i));
    let mut looker = Session::open(cluster).await;
    // They know each other.
    looker.until(&format!("({}) > 3 and ({}) > 3", beats_of(judge), beats_of(other))).await;
    drop(looker);
    block_in_place(|| cluster.postgres().stop(StopMode::Fast)).unwrap();
    cluster.freeze(other);
    // The absence itself; nothing is waited for.
    tokio::time::sleep(AWAY).await;
    block_in_place(|| cluster.postgres().restart(StopMode::Fast)).unwrap();
    let mut looker = Session::open(cluster).await;
    let before: i64 = looker.ask(&beats_of(judge)).await.parse().unwrap();
    let lost = "select exists (select from replicas where state = 'lost')";
    looker.until(&format!("({}) >= {} or ({lost})", beats_of(judge), before + BEATS)).await;
    cluster.thaw(other);
    let before: i64 = looker.ask(&beats_of(other)).await.parse().unwrap();
    looker.until(&format!("({}) > {before}", beats_of(other))).await;
    looker.ask(lost).await == "false"
}

/// A replica dies with a claim on its way, which is committed only when all else that it held has been
/// closed. The claim is played by a session of our own: the dead one's would be ended with it.
pub async fn late_claim(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({})).await;
    let (other, doomed) = (0, 1);
    let told = cluster.post_on(doomed, "demo", "/slow 600").await;
    let first = cluster.post(other, "demo", "/slow 600").await;
    cluster.worker_of(&first).await;
    let late = cluster.post_in(other, &first.conversation, "demo", "hello").await;
    let (mut claim, mut looker) = (Session::open(cluster).await, Session::open(cluster).await);
    claim.run("begin").await;
    // From here on nobody else can claim it.
    let row = format!("select from inflight where turn_id = '{}' for update", uuid(&late.id));
    assert_eq!(claim.run(&row).await, 1);
    cluster.cancel(other, &first).await;
    let gone = format!("select not exists (select from inflight where turn_id = '{}')", uuid(&first.id));
    looker.until(&gone).await;
    let claimed = format!(
        "update inflight set phase = 'starting', epoch = epoch + 1, clock = 'startup', claimed_at = clock_timestamp(),
                deadline = clock_timestamp() + interval '60 s',
                replica = (select id from replicas where pid = {} and state = 'ready')
          where turn_id = '{}' and phase = 'queued'",
        cluster.pid(doomed),
        uuid(&late.id)
    );
    assert_eq!(claim.run(&claimed).await, 1);
    let mut stream = cluster.stream(other, &told.id, -1).await;
    cluster.kill(doomed);
    let word = stream.until_terminal(PATIENCE).await.pop().unwrap();
    assert_eq!(word.code(), "replica_lost", "{}", word.data);
    claim.run("commit").await;
    let ends = tokio::time::timeout(Duration::from_secs(10), cluster.watch(other, &late)).await;
    ends.is_ok_and(|events| events.last().unwrap().kind == "completed")
}

/// Far more turns are due at once than one page closes.
pub async fn many_due(cluster: &Cluster) -> bool {
    let mut session = Session::open(cluster).await;
    // Nobody hosts their runtime, so nobody claims them.
    let all = |value: &str| format!("array_fill({value}, array[{DUE}])");
    let [yes, no, none] = ["true", "false", "null::text"].map(all);
    let [nobody, one, minute] = ["'nobody'::text", "1", "60000::bigint"].map(all);
    let [input, trace] =
        ["'{\"text\":\"hello\"}'::text", "'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'::text"]
            .map(all);
    let [queue, event, many] = ["'queue'::text", "'{\"ordinal\":'::text", "1000000"].map(all);
    let [nothing, no_number] = ["null::uuid", "null::bigint"].map(all);
    let accepted = format!(
        "select count(a.o_turn) from (
           select array_agg((left(replace(lw_first_id(now())::text, '-', ''), 12) || '7' || right(md5(n::text), 19))::uuid) as ids
             from generate_series(1, {DUE}) n) t,
           lateral lw_accept_v1(null, ids, ids, {yes}, {nobody}, {one}, {nobody}, {input}, {none}, {trace}, {nothing},
             {none}, {none}, {queue}, {minute}, {minute}, {minute}, {minute}, {no}, {many}, {many}, null,
             {no}, {no_number}, {nothing}, {event}, {none}) a"
    );
    assert_eq!(session.ask(&accepted).await, DUE.to_string());
    session.run("update inflight set deadline = clock_timestamp()").await;
    let closed = eventually_or_not(DUE_MAX, async || session.count("inflight").await == 0).await;
    if !closed {
        // The cluster's end would wait for them.
        session.run("truncate inflight").await;
    }
    closed
}

/// Whether it comes about in time.
async fn eventually_or_not(at_most: Duration, mut look: impl AsyncFnMut() -> bool) -> bool {
    let waited = tokio::time::timeout(at_most, async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.is_ok()
}
