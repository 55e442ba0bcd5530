//! A directory to start workers in, and ways to wait for them.

use std::{collections::BTreeMap, fs, time::Duration};

use lastword::{
    host::{
        process::{Exit, Heard, Launch, Process, StartError},
        protocol::messages::Message,
    },
    id::TurnId,
    task::Supervisor,
};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{interval, timeout};

/// Far above what anything here takes, so that a busy machine fails nothing.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A shell function that starts `sleep` where nothing but the guard could find it: in a session of
/// its own, orphaned, deaf to SIGTERM. It says its process id first.
pub const HIDE: &str = r#"
hide() { ( ( setsid sh -c 'trap "" TERM HUP INT; echo "{\"type\":\"pid\",\"pid\":$$}"; while :; do sleep 1; done' & ) & ); }
"#;

pub struct Bench {
    pub dir: TempDir,
    pub supervisor: Supervisor,
    /// Whether its workers get a namespace of their own, where this machine gives one.
    pub namespace: bool,
}

impl Bench {
    pub fn new() -> Self {
        Bench { dir: TempDir::new().unwrap(), supervisor: Supervisor::new(), namespace: true }
    }

    /// One whose workers may have a namespace of their own, and one whose workers have none.
    pub fn both() -> [Self; 2] {
        [Bench::new(), Bench { namespace: false, ..Bench::new() }]
    }

    pub fn launch(&self, command: &[&str]) -> Launch {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let mark = ("MARK".to_owned(), self.dir.path().display().to_string());
        Launch {
            env: BTreeMap::from([mark]),
            guard: env!("CARGO_BIN_EXE_lastword").into(),
            silence_max: PATIENCE * 2,
            namespace: self.namespace,
            ..Launch::new(command, self.dir.path().join("workspace"))
        }
    }

    /// How many processes that descend from this bench's agents are alive.
    pub fn processes(&self) -> usize {
        let mark = format!("MARK={}\0", self.dir.path().display());
        let is_ours = |pid: &i32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).count()
    }

    pub async fn try_start(&self, launch: Launch) -> Result<Process, StartError> {
        within(Process::start(&self.supervisor, launch)).await
    }

    pub async fn start(&self, launch: Launch) -> Process {
        self.try_start(launch).await.unwrap()
    }

    pub async fn sh(&self, script: &str) -> Process {
        self.start(self.launch(&["sh", "-c", script])).await
    }

    pub async fn python(&self, script: &str) -> Process {
        self.start(self.launch(&["python3", "-c", script])).await
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it never came")
}

pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut tick = interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so() {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The next message's own fields, by way of a type that the protocol does not know.
pub async fn custom(process: &mut Process) -> serde_json::Value {
    match within(process.recv()).await {
        Heard::Message(heard) => match heard.message {
            Message::Custom { data, .. } => serde_json::from_str(data.text()).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}; stderr: {}", process.stderr_tail()),
    }
}

/// The process id that a worker's process said, as it is out here.
pub async fn pid_said(process: &mut Process) -> i32 {
    let inner = custom(process).await["pid"].as_i64().unwrap() as i32;
    outside(process.pid(), inner)
}

/// The number that a process of a worker has out here, which in there goes by `inner`.
fn outside(worker: i32, inner: i32) -> i32 {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = namespace(worker).expect("the worker lives");
    if Some(&inside) == namespace(std::process::id() as i32).as_ref() {
        return inner;
    }
    let is_it = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let last = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
        last == Some(inner) && namespace(*pid).as_ref() == Some(&inside)
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.find(is_it).unwrap_or_else(|| panic!("{inner} of {worker} is not there"))
}

/// Everything up to the exit: the messages, and the exit.
pub async fn rest(process: &mut Process) -> (Vec<Message>, Exit) {
    let mut messages = Vec::new();
    let mut is_closed = false;
    loop {
        match within(process.recv()).await {
            Heard::Message(heard) => messages.push(heard.message),
            Heard::Protocol(error) => panic!("{error}: {}", error.excerpt),
            Heard::Gone(why) => panic!("no remote worker: {why:?}"),
            Heard::Closed => assert!(!std::mem::replace(&mut is_closed, true), "closed twice"),
            Heard::Exited(exit) => {
                assert!(is_closed, "an exit is told after the end of what was said");
                return (messages, exit);
            }
        }
    }
}

pub fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
}

pub fn parent(pid: i32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(line.trim().parse().unwrap())
}

pub fn turn_id() -> TurnId {
    "turn_019000000000700080000000000000ab".parse().unwrap()
}
