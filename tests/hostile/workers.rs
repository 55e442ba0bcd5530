//! Workers that attack their replica: they search for its secrets, and try to end it.
//!
//! Most cases need root: only root may start a replica as another user, or a worker as another user than its replica.
//! Without root each test says what it skips, and attacks with the rest.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nix::{sys::signal::Signal, unistd::Uid};
use serde_json::{Value, json};

use crate::support::{
    Cluster, OPERATOR, PATIENCE, Plan, Turn, children_of, eventually, is_alive, said, signal,
};

/// Nobody has these numbers.
const REPLICAS_USER: u32 = 64_001;
const WORKERS_USER: u32 = 64_002;

/// A worker that attacks the process which the turn names, and tells what came of it: a list of what it could
/// do, and what it is itself.
const ATTACKER: &str = r#"
import ctypes, json, os, resource, sys

libc = ctypes.CDLL(None, use_errno=True)

def say(**message):
    print(json.dumps(message), flush=True)

def reads(path):
    with open(path, "rb") as file:
        return len(file.read(64))

def traces(pid):
    if libc.ptrace(16, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

say(type="ready")
turn = json.loads(sys.stdin.readline())
target = int(turn["input"]["text"])
done = []
def attempt(name, attack):
    try:
        attack()
        done.append(name)
    except OSError:
        pass
proc = f"/proc/{target}"
attempt("environ", lambda: reads(proc + "/environ"))
attempt("mem", lambda: open(proc + "/mem", "rb").close())
attempt("maps", lambda: reads(proc + "/maps"))
attempt("fd", lambda: os.listdir(proc + "/fd"))
attempt("cwd", lambda: os.readlink(proc + "/cwd"))
attempt("trace", lambda: traces(target))
attempt("root", lambda: os.setuid(0))
if os.getuid() != 0:
    attempt("kill", lambda: os.kill(target, 0))
    attempt("kill its guard", lambda: os.kill(os.getppid() or target, 0))
with open("/dev/stderr", "w") as stderr:
    stderr.write("stderr can be opened\n")
with open("file", "w") as file:
    file.write("the workspace is its own")
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
me = {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "env": dict(os.environ),
      "no_new_privs": status["NoNewPrivs"].strip(), "core": resource.getrlimit(resource.RLIMIT_CORE),
      "file": resource.getrlimit(resource.RLIMIT_FSIZE), "workspace": os.stat(".").st_uid}
say(type="delta", turn_id=turn["turn_id"], text=json.dumps({"done": done, "me": me}))
say(type="complete", turn_id=turn["turn_id"])
sys.stdin.readline()
"#;

/// What an attack on replica 0 by a worker of it told: what could be done, and what the worker is.
async fn attack(cluster: &Cluster) -> (Vec<String>, Value) {
    let spec = json!({"runtime": "process", "command": ["python3", "-c", ATTACKER]});
    cluster.put_agent("attacker", spec).await;
    let turn = cluster.post(0, "attacker", &cluster.pid(0).to_string()).await;
    let events = cluster.watch(0, &turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
    let told: Value = serde_json::from_str(&said(&events)).unwrap();
    let done =
        told["done"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    (done, told["me"].clone())
}

/// Whether this test may play several users; says so where it may not.
fn is_root() -> bool {
    if !Uid::effective().is_root() {
        eprintln!("not root: every process of this test has one user");
    }
    Uid::effective().is_root()
}

/// What a replica holds that no worker may see.
fn secrets(cluster: &Cluster) -> [String; 2] {
    [OPERATOR.to_owned(), cluster.postgres().url()]
}

fn assert_no_secret(text: &str, cluster: &Cluster, place: &str) {
    for secret in secrets(cluster) {
        assert!(!text.contains(&secret), "{place} tells a secret of the replica: {text}");
    }
}

#[tokio::test]
async fn a_worker_of_the_replicas_own_user_cannot_look_into_it() {
    let user = is_root().then_some(REPLICAS_USER);
    let cluster = &Cluster::with(Plan { replicas: 1, user, ..Plan::default() }).await;
    let (done, me) = attack(cluster).await;
    // One user may signal its own processes: only another user for workers, or a namespace, prevents that.
    let looked: Vec<&String> = done.iter().filter(|name| !name.starts_with("kill")).collect();
    assert!(looked.is_empty(), "a worker could do this to its replica: {looked:?}");
    assert_no_secret(&me["env"].to_string(), cluster, "the worker's environment");
    let pid = cluster.pid(0).to_string();
    let names_it = |value: &Value| value.as_str().is_some_and(|text| text.split('.').any(|part| part == pid));
    assert!(
        !me["env"].as_object().unwrap().values().any(names_it),
        "its environment names the replica: {me}"
    );
    assert_eq!(me["no_new_privs"], "1", "{me}");
    assert_eq!(me["core"], json!([0, 0]), "{me}");
    let file_max = 8_u64 << 30;
    assert!(me["file"][1].as_u64().is_some_and(|max| max <= file_max), "{me}");
    assert!(cluster.log(0).contains("set worker_user to another user"), "the replica warns of it once");
}

#[tokio::test]
async fn a_replicas_environment_holds_no_secret_once_it_has_started() {
    let cluster = &Cluster::start(1).await;
    let environ = fs::read(format!("/proc/{}/environ", cluster.pid(0)));
    // Unreadable is better still; root may read it all the same.
    let Ok(environ) = environ else { return assert!(!Uid::effective().is_root()) };
    let environ = String::from_utf8_lossy(&environ).into_owned();
    assert!(environ.contains("LASTWORD_DATA_DIR="), "it is the replica's: {environ}");
    assert_no_secret(&environ, cluster, "/proc/PID/environ");
}

#[tokio::test]
async fn a_worker_of_another_user_can_neither_read_nor_end_its_replica() {
    if !is_root() {
        let refused = refused_start("65534");
        assert!(refused.contains("worker_user cannot be used"), "{refused}");
        assert!(refused.contains("CAP_SETUID"), "it says what is lacking: {refused}");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let env = vec![
        ("LASTWORD_WORKER_USER".to_owned(), WORKERS_USER.to_string()),
        ("LASTWORD_WORKER_FILE_MAX".to_owned(), "3MiB".to_owned()),
        ("LASTWORD_DATA_DIR".to_owned(), data.path().join("data").display().to_string()),
    ];
    let cluster = &Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    let (done, me) = attack(cluster).await;
    assert!(done.is_empty(), "a worker could do this to its replica: {done:?}");
    assert_eq!((&me["uid"], &me["gid"]), (&json!(WORKERS_USER), &json!(WORKERS_USER)), "{me}");
    assert_eq!(me["groups"], json!([WORKERS_USER]), "{me}");
    assert_eq!(me["workspace"], WORKERS_USER, "{me}");
    assert_eq!(me["file"], json!([3 << 20, 3 << 20]), "{me}");
    assert!(!cluster.log(0).contains("set worker_user to another user"), "nothing is to be warned of");
    assert!(is_alive(cluster.pid(0)));
}

#[tokio::test]
async fn a_user_that_workers_cannot_have_is_refused_at_the_start() {
    let own = Uid::effective().to_string();
    let cases =
        [(own.as_str(), "worker_user is "), ("no-such-user", "worker_user `no-such-user` is neither")];
    for (user, told) in cases {
        let refused = refused_start(user);
        assert!(refused.contains(told), "{user}: {refused}");
    }
    if is_root() {
        let closed = tempfile::tempdir().unwrap();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = refused_start_in(closed.path(), &WORKERS_USER.to_string());
        assert!(refused.contains("cannot pass through") && refused.contains("chmod o+x"), "{refused}");
    }
}

fn refused_start(user: &str) -> String {
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o711)).unwrap();
    refused_start_in(open.path(), user)
}

/// What `serve` says that does not start with this user for its workers.
fn refused_start_in(dir: &Path, user: &str) -> String {
    let mut serve = std::process::Command::new(crate::support::program());
    serve
        .args(["serve", "--listen", "127.0.0.1:0", "--database-url", "postgres://nobody@127.0.0.1:1/none"])
        .current_dir(dir)
        .env("LASTWORD_DATA_DIR", dir.join("below/data"))
        .env("LASTWORD_WORKER_USER", user)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = lastword_devkit::child::spawn(serve, Signal::SIGKILL).unwrap();
    let is_over = lastword_devkit::child::wait(PATIENCE.min(Duration::from_secs(20)), || {
        child.try_wait().unwrap().is_some()
    });
    if !is_over {
        child.kill().unwrap();
    }
    let done = child.wait_with_output().unwrap();
    assert!(is_over && !done.status.success(), "it started with worker_user {user}");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// A worker of which a process hides: twice forked, in a session of its own, with nothing in its environment. Then
/// it kills its guard, where it can, or leaves.
const RUNAWAY: &str = r#"
import json, os, signal, sys, time

print(json.dumps({"type": "ready"}), flush=True)
turn = json.loads(sys.stdin.readline())
name = turn["input"]["text"]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execve("/bin/sh", ["sh", "-c", "touch hidden; while :; do sleep 0.1; done", name], {})
    os._exit(0)
os.wait()
while not os.path.exists("hidden"):
    time.sleep(0.01)
if not name.endswith("waits"):
    try:
        os.kill(os.getppid(), signal.SIGKILL)
    except OSError:
        pass
    # Where its guard is the first of a namespace the signal is not delivered.
    time.sleep(1)
    sys.exit(7)
sys.stdin.readline()
"#;

/// Living processes with this word in their command line.
fn named(word: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).any(|part| part == word.as_bytes()) && is_alive(*pid)
    })
    .collect()
}

async fn run_away(cluster: &Cluster, name: &str) -> Turn {
    let spec = json!({"runtime": "process", "command": ["python3", "-c", RUNAWAY]});
    cluster.put_agent("runaway", spec).await;
    cluster.post(0, "runaway", name).await
}

fn runaway_name() -> String {
    format!("runaway-{:032x}", rand::random::<u128>())
}

async fn nothing_of_a_runaway_lives(env: Vec<(String, String)>) {
    let cluster = &Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    let name = runaway_name();
    let turn = run_away(cluster, &name).await;
    let events = cluster.watch(0, &turn).await;
    assert_eq!(events.last().unwrap().code(), "worker_exited", "{:?}", events.last());
    assert!(cluster.workspace(&turn.conversation).join("hidden").exists(), "nothing hid");
    eventually("nothing of it lives", async || named(&name).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_worker_that_hides_and_kills_its_guard_leaves_nothing() {
    nothing_of_a_runaway_lives(Vec::new()).await;
}

#[tokio::test]
async fn a_worker_that_hides_and_kills_its_guard_leaves_nothing_without_a_namespace() {
    nothing_of_a_runaway_lives(vec![("LASTWORD_WORKER_NAMESPACES".to_owned(), "off".to_owned())]).await;
}

/// What the documents say: with a namespace nothing outlives replica and guard; without one something may.
#[tokio::test]
async fn a_hidden_process_outlives_replica_and_guard_only_without_a_namespace() {
    let cluster = &Cluster::start(1).await;
    let name = format!("{}-waits", runaway_name());
    let turn = run_away(cluster, &name).await;
    let worker = cluster.worker_of(&turn).await;
    eventually("it has hidden", async || (!named(&name).is_empty()).then_some(())).await;
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let is_apart = namespace(worker.pid) != namespace(i32::try_from(std::process::id()).unwrap());
    let guards = children_of(cluster.pid(0));
    // Neither may see the other's end.
    guards.iter().for_each(|guard| signal(*guard, Signal::SIGSTOP));
    cluster.kill(0);
    guards.iter().for_each(|guard| signal(*guard, Signal::SIGKILL));
    if is_apart {
        eventually("nothing of it lives", async || named(&name).is_empty().then_some(())).await;
    } else {
        assert!(!is_root(), "root has namespaces here");
        named(&name).into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
    }
    cluster.spawn_replica().await;
}
