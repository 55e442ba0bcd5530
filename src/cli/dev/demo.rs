//! `lastword demo`: shows the promise in half a minute, without input.
//!
//! Owns a cluster in a temporary directory, and the story on stdout. Also checks the result: exits with 1 if a
//! promise was broken.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use eventsource_stream::Eventsource as _;
use futures_util::{Stream, StreamExt as _};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use lastword_devkit::signals::Signals;

use super::cluster::{DevCluster, DevPlan};

/// Timeout of one step of the story.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Pieces of the answer shown before the replica is killed.
const PIECES: usize = 8;
/// A turn that would take 20 seconds.
const MESSAGE: &str = "/slow 200";

/// Flags of `lastword demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Directory of the programs `postgres` and `initdb` [default: searched for]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
}

/// Starts two replicas, kills the one that runs a turn, and shows the last word that the other wrote.
///
/// # Errors
/// The cluster does not start, or a promise was broken.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let place = DemoDirectory::new()?;
    let plan = DevPlan {
        dir: place.0.clone(),
        port: two_free_ports()?,
        replicas: 2,
        postgres_bin: args.postgres_bin,
        is_durable: false,
    };
    tell("Starting a private Postgres and two replicas …");
    let mut cluster = DevCluster::start(&plan).await?;
    let mut signals = Signals::listen()?;
    let told = tokio::select! {
        told = story(&mut cluster) => told,
        () = signals.asked() => Err(anyhow::anyhow!("stopped by a signal")),
    };
    cluster.stop(&mut signals).await;
    told.map(|()| ExitCode::SUCCESS)
}

async fn story(cluster: &mut DevCluster) -> anyhow::Result<()> {
    cluster.settle().await?;
    cluster.install_demo_agent().await?;
    let gateway = DemoClient::of(cluster)?;
    for replica in &cluster.state().replicas {
        tell(&format!(
            "  replica {}  {}  process {}",
            replica.name,
            replica.url,
            replica.pid.unwrap_or_default()
        ));
    }

    let turn = gateway.accept().await?;
    let victim = gateway.holder(&turn, cluster).await?;
    let witness = 1 - victim;
    let (dying, living) = (name(victim), name(witness));
    tell(&format!("\n{turn} was accepted. Its worker belongs to replica {dying}."));
    tell(&format!("A client watches it, connected to replica {living}:\n"));

    let events = gateway.watch(witness, &turn).await?;
    let mut events = std::pin::pin!(events);
    let mut seen = Vec::new();
    while pieces(&seen) < PIECES {
        see(&mut seen, next(&mut events).await?);
    }
    cluster.send(victim, Signal::SIGKILL);
    let killed_at = Instant::now();
    tell(&format!(
        "\nkill -9 of replica {dying}, in the middle of the answer. The client stays where it is:\n"
    ));
    while !ends(&seen) {
        see(&mut seen, next(&mut events).await?);
    }
    let waited = killed_at.elapsed();
    judge(&seen)?;
    tell(&format!("\nThe last word came {waited:.1?} after the kill, written by replica {living}."));

    cluster.settle().await?;
    let again = gateway.events(victim, &turn).await?;
    ensure!(again == seen, "replica {dying} serves other events of the turn than replica {living}");
    tell(&format!("Replica {dying} is back, and serves the same {} events of the turn.\n", seen.len()));
    verify(cluster).await
}

/// The gateway as a client sees it.
struct DemoClient {
    http: reqwest::Client,
    urls: Vec<String>,
    token: String,
}

impl DemoClient {
    fn of(cluster: &DevCluster) -> anyhow::Result<DemoClient> {
        let http = reqwest::Client::builder().no_proxy().connect_timeout(STEP_MAX).build()?;
        Ok(DemoClient { http, urls: cluster.state().urls, token: cluster.token().to_owned() })
    }

    /// Posts the turn to the first replica. Returns its id.
    async fn accept(&self) -> anyhow::Result<String> {
        let turn = json!({"agent": "demo", "input": MESSAGE});
        let request = self.http.post(format!("{}/v1/turns", self.urls[0])).json(&turn);
        let answer = answer(request.bearer_auth(&self.token)).await?;
        Ok(answer["id"].as_str().context("the turn has no id")?.to_owned())
    }

    /// The replica that runs the turn: usually, but not always, the one that accepted it.
    async fn holder(&self, turn: &str, cluster: &DevCluster) -> anyhow::Result<usize> {
        let until = Instant::now() + STEP_MAX;
        while Instant::now() < until {
            let workers = self.list("workers").await?;
            let worker = workers.iter().find(|worker| worker["turn_id"] == turn);
            if let Some(worker) = worker {
                let replicas = self.list("replicas").await?;
                let replica = replicas.iter().find(|replica| replica["id"] == worker["replica_id"]);
                let pid = replica.and_then(|replica| replica["pid"].as_u64());
                let state = cluster.state();
                let holder = state.replicas.iter().position(|ours| ours.pid.map(u64::from) == pid);
                return holder.context("the turn runs on an unknown replica");
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("no worker took {turn}")
    }

    async fn list(&self, what: &str) -> anyhow::Result<Vec<Value>> {
        let request = self.http.get(format!("{}/v1/{what}", self.urls[0])).bearer_auth(&self.token);
        let mut answer = answer(request).await?;
        Ok(answer["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// The turn's events from the first on, as replica `n` streams them.
    async fn watch(&self, n: usize, turn: &str) -> anyhow::Result<impl Stream<Item = anyhow::Result<Value>>> {
        let request = self.http.get(format!("{}/v1/turns/{turn}/events", self.urls[n]));
        let request = request.bearer_auth(&self.token).header("accept", "text/event-stream");
        let answer = timeout(STEP_MAX, request.send()).await??.error_for_status()?;
        Ok(answer.bytes_stream().eventsource().map(|event| Ok(serde_json::from_str(&event?.data)?)))
    }

    /// All events of an ended turn, from replica `n`.
    async fn events(&self, n: usize, turn: &str) -> anyhow::Result<Vec<Value>> {
        let events = self.watch(n, turn).await?;
        let mut events = std::pin::pin!(events);
        let mut all = Vec::new();
        while !ends(&all) {
            all.push(next(&mut events).await?);
        }
        Ok(all)
    }
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.timeout(STEP_MAX).send().await?;
    let (url, status, text) = (answer.url().clone(), answer.status(), answer.text().await?);
    ensure!(status.is_success(), "{url} answered {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

async fn next(events: &mut (impl Stream<Item = anyhow::Result<Value>> + Unpin)) -> anyhow::Result<Value> {
    let event = timeout(STEP_MAX, events.next()).await.context("the stream fell silent")?;
    event.context("the stream ended without a last word")?
}

/// Prints an event and keeps it.
fn see(seen: &mut Vec<Value>, event: Value) {
    let (seq, kind) = (event["seq"].to_string(), event["kind"].as_str().unwrap_or("?"));
    let text = |of: &Value| of.as_str().unwrap_or("?").to_owned();
    let what = match kind {
        "delta" => event["text"].to_string(),
        "failed" => format!("{}: {}", text(&event["error"]["code"]), text(&event["error"]["message"])),
        _ => String::new(),
    };
    tell(format!("  {seq:>4}  {kind:<10} {what}").trim_end());
    seen.push(event);
}

fn pieces(seen: &[Value]) -> usize {
    seen.iter().filter(|event| event["kind"] == "delta").count()
}

fn ends(seen: &[Value]) -> bool {
    let kind = seen.last().and_then(|event| event["kind"].as_str());
    matches!(kind, Some("completed" | "failed" | "cancelled"))
}

/// Checks that the events are contiguous from 0 and that the last word says what happened.
fn judge(seen: &[Value]) -> anyhow::Result<()> {
    for (expected, event) in seen.iter().enumerate() {
        ensure!(event["seq"] == json!(expected), "event {expected} has seq {}", event["seq"]);
    }
    let code = seen.last().map(|last| &last["error"]["code"]);
    ensure!(code == Some(&json!("replica_lost")), "the last word should be replica_lost, not {code:?}");
    Ok(())
}

async fn verify(cluster: &DevCluster) -> anyhow::Result<()> {
    tell("$ lastword verify");
    let mut verify = tokio::process::Command::from(cluster.command("verify"));
    let done = timeout(STEP_MAX, verify.kill_on_drop(true).output()).await.context("verify hangs")??;
    let said = [String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)].concat();
    tell(said.trim());
    ensure!(done.status.success(), "`lastword verify` found something ({})", done.status);
    tell("\nEvery accepted turn got its last word.");
    Ok(())
}

fn name(n: usize) -> char {
    if n == 0 { 'A' } else { 'B' }
}

fn tell(line: &str) {
    say!("{line}");
}

fn two_free_ports() -> anyhow::Result<u16> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..100)
        .map(|_| rand::random_range(20_000..32_000))
        .find(|port| is_free(*port) && is_free(port + 1))
        .context("no two free ports in a row on 127.0.0.1")
}

/// The demo's temporary directory, removed at the end.
struct DemoDirectory(PathBuf);

impl DemoDirectory {
    fn new() -> anyhow::Result<DemoDirectory> {
        let name = format!("lastword-demo-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let place = std::env::temp_dir().join(name);
        ensure!(!place.exists(), "{} is there already", place.display());
        Ok(DemoDirectory(place))
    }
}

impl Drop for DemoDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: usize, kind: &str) -> Value {
        json!({"seq": seq, "kind": kind, "error": {"code": "replica_lost"}})
    }

    #[test]
    fn a_gap_or_another_last_word_fails_the_demo() {
        assert!(judge(&[event(0, "accepted"), event(1, "failed")]).is_ok());
        assert!(judge(&[event(0, "accepted"), event(2, "failed")]).is_err());
        assert!(judge(&[json!({"seq": 0, "error": {"code": "internal"}})]).is_err());
        assert!(judge(&[]).is_err());
    }

    #[test]
    fn only_a_terminal_event_ends_the_watching() {
        assert!(!ends(&[event(0, "accepted")]));
        assert!(ends(&[event(0, "accepted"), event(1, "cancelled")]));
    }
}
