//! The outlet of a cluster's stdio workers: the log, where a replica hosts them, or HTTP, where `lastword work` does.
//!
//! A case is written once, for an agent of the runtime `process`, and runs on a cluster of either outlet. Over HTTP
//! [`Cluster::put_agent`] makes such an agent a remote one, and starts a host for it; workers are the host's processes, and
//! what is known of them stands in its log. Hosts end with their cluster.

use std::{path::PathBuf, process::ExitStatus};

use serde_json::{Value, json};

use super::{
    Cluster, Turn,
    cases::{Case, all, is_picked},
    eventually,
    host::{Host, HostPlan},
    is_alive, lock,
};

/// What the log of a host says of a process that runs, of a turn that a process has, and of a process that has ended.
const STARTED: &str = "worker started pid=";
const GIVEN: &str = "the worker has the turn";
const ENDED: &str = "worker ended worker_id=";
/// What the log of a host says of a turn's words after its end.
const LATE: &str = "a worker's message came after its turn's end";

/// Where the words of stdio workers go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outlet {
    /// To the log: the workers are a replica's.
    #[default]
    Log,
    /// Over HTTP to a replica: the workers are those of `lastword work`.
    Http,
}

/// A case of stdio workers; and why the log alone has it, where HTTP has not.
pub type OutletCase<'a> = (Option<&'static str>, Case<'a>);

/// The named functions as cases of one cluster: of `both` outlets, or of the `log` alone, with the reason.
#[macro_export]
macro_rules! outlets {
    ($cluster:expr; $($on:ident $(($why:literal))? $case:path),+ $(,)?) => {
        vec![$(($crate::outlets!(@only $on $($why)?), (stringify!($case), Box::pin($case($cluster)) as _))),+]
    };
    (@only both) => { None };
    (@only log $why:literal) => { Some($why) };
}

/// Runs the cases of a table that this outlet has. Those that were picked may all be of the other one.
pub async fn all_of(outlet: Outlet, table: Vec<OutletCase<'_>>) {
    let (mut cases, mut has_others) = (Vec::new(), false);
    for (why_log_alone, (name, case)) in table {
        match why_log_alone.filter(|_| outlet == Outlet::Http) {
            Some(why) if is_picked(name) => {
                has_others = true;
                eprintln!("case {name} ... not over HTTP: {why}");
            }
            Some(_) => {}
            None => cases.push((name, case)),
        }
    }
    if !has_others || cases.iter().any(|(name, _)| is_picked(name)) {
        all(cases).await;
    }
}

/// A host that runs an agent's program.
pub(super) struct AgentHost {
    agent: String,
    pub(super) host: Host,
    /// Whether another one has taken its place.
    is_former: bool,
}

impl AgentHost {
    /// How it ended by itself.
    pub(super) fn lost(&mut self) -> Option<ExitStatus> {
        if self.is_former { None } else { self.host.exit() }
    }
}

/// What a host is to know of an agent.
struct HostedProgram {
    command: Vec<String>,
    env: Vec<(String, String)>,
    is_shared: bool,
    concurrency: u64,
}

/// Turns that a shared worker serves by default.
const SHARED_TURNS: u64 = 64;

impl Cluster {
    /// The outlet of its stdio workers.
    pub fn outlet(&self) -> Outlet {
        self.plan.outlet
    }

    /// Puts an agent. Over HTTP one of the runtime `process` becomes a remote one, with a host of its own in the place of
    /// the one that it had.
    pub async fn put_agent(&self, name: &str, mut spec: Value) {
        if self.outlet() == Outlet::Log || spec["runtime"] != "process" {
            return self.put_spec(name, spec).await;
        }
        let program = self.hosted(&mut spec);
        self.end_host_of(name).await;
        self.put_spec(name, spec).await;
        let host = self.start_host(name, program);
        lock(&self.hosts).push(AgentHost { agent: name.to_owned(), host, is_former: false });
    }

    /// Makes a process's spec a remote one; what its host is to know.
    fn hosted(&self, spec: &mut Value) -> HostedProgram {
        let fields = spec.as_object_mut().unwrap();
        fields.insert("runtime".to_owned(), json!("remote"));
        let command = serde_json::from_value(fields.remove("command").unwrap()).unwrap();
        let env = fields.remove("env").unwrap_or(json!({}));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let env = env.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))).collect();
        let is_shared = fields.get("scope").is_some_and(|scope| scope == "shared");
        let concurrency = match is_shared {
            true => fields.get("max_concurrent_turns").map_or(SHARED_TURNS, |turns| turns.as_u64().unwrap()),
            false => self.plan.turns_max.into(),
        };
        HostedProgram { command, env, is_shared, concurrency }
    }

    /// Starts a host that calls one replica: this one, then that.
    fn start_host(&self, agent: &str, program: HostedProgram) -> Host {
        let replica = [lock(&self.hosts).len() % self.replicas()];
        let concurrency = program.concurrency.to_string();
        let mut flags = vec!["--concurrency", &concurrency];
        let workers_max = self.plan.workers_max.map(|count| count.to_string());
        flags.extend(workers_max.iter().flat_map(|count| ["--workers-max", count]));
        let env: Vec<(&str, &str)> = program.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        // Where a replica has the workspaces of conversations.
        let data_dir = (!program.is_shared).then(|| self.workspaces());
        let plan = HostPlan {
            data_dir: data_dir.as_deref(),
            flags: &flags,
            env: &env,
            command: program.command,
            ..HostPlan::demo(agent, &replica)
        };
        Host::start(self, plan)
    }

    /// Lets the agent's host leave, if it has one.
    async fn end_host_of(&self, agent: &str) {
        let leaving = {
            let mut hosts = lock(&self.hosts);
            let current = hosts.iter().position(|it| it.agent == agent && !it.is_former);
            current.inspect(|&n| {
                hosts[n].is_former = true;
                hosts[n].host.terminate();
            })
        };
        let Some(n) = leaving else { return };
        let exit = eventually("the former host leaves", async || lock(&self.hosts)[n].host.exit()).await;
        assert!(exit.success(), "the former host of {agent}: {exit}");
    }

    /// Where conversations have their workspaces.
    pub(super) fn workspaces(&self) -> PathBuf {
        self.data_dir().join("workspaces")
    }

    /// Guards that are there: one a worker, from before its start to after its end.
    pub fn guards(&self) -> usize {
        let starters: Vec<i32> = match self.outlet() {
            Outlet::Log => (0..self.replicas()).map(|i| self.pid(i)).collect(),
            Outlet::Http => lock(&self.hosts).iter().map(|it| it.host.pid()).collect(),
        };
        let guards = starters.into_iter().flat_map(super::children_of);
        guards.filter(|pid| is_alive(*pid)).count()
    }

    /// The process of the turn that waits for its worker, once there is one.
    pub async fn starting(&self, turn: &Turn) -> i32 {
        eventually("its worker starts", async || match self.outlet() {
            Outlet::Log => {
                let workers = self.workers().await;
                let is_its = |worker: &&Value| worker["conversation_id"] == turn.conversation.as_str();
                let worker = workers.iter().find(is_its).filter(|worker| worker["state"] == "starting");
                worker.and_then(|worker| worker["pid"].as_i64()).map(|pid| i32::try_from(pid).unwrap())
            }
            Outlet::Http => self.host_says(|line| {
                let pid = line.contains(&turn.id).then(|| line.split_once(STARTED)).flatten()?.1;
                Some(pid.parse().unwrap())
            }),
        })
        .await
    }

    /// The process that received a turn last: its id and its process id.
    pub(super) async fn process_of(&self, turn: &Turn) -> (String, i32) {
        eventually("a process has the turn", async || {
            let is_given = |line: &str| line.contains(GIVEN) && line.contains(&turn.id);
            let worker = self.host_says(|line| is_given(line).then(|| worker_in(line)))?;
            let pid = self.host_says(|line| {
                let pid = line.contains(&worker).then(|| line.split_once(STARTED)).flatten()?.1;
                Some(pid.parse().unwrap())
            });
            Some((worker, pid?))
        })
        .await
    }

    /// How the process of a host ended, once it has.
    pub(super) fn process_ended(&self, worker: &str) -> Option<Value> {
        let exit = self.host_says(|line| {
            let (id, exit) = line.split_once(ENDED)?.1.split_once(" exit=")?;
            (id == worker).then(|| exit.to_owned())
        });
        exit.map(|exit| json!({"exit": exit}))
    }

    /// Turns of which hosts heard something after their end.
    pub fn late_at_hosts(&self) -> u64 {
        let hosts = lock(&self.hosts);
        hosts.iter().map(|it| it.host.log().matches(LATE).count() as u64).sum()
    }

    /// The newest line in a host's log that says it.
    fn host_says<T>(&self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let hosts = lock(&self.hosts);
        hosts.iter().rev().find_map(|it| it.host.log().lines().rev().find_map(&read))
    }
}

/// The id of the worker that a line names.
fn worker_in(line: &str) -> String {
    let named = line.split_once("worker_id=").unwrap_or_else(|| panic!("no worker: {line}")).1;
    named.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}
