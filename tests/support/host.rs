//! A `lastword work` process, its log and its end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
};

use lastword_devkit::child;
use nix::sys::signal::Signal;

use super::{Cluster, children_of, eventually, program};

/// The token that lets any worker in, where a cluster lets workers in.
pub const WORKERS: &str = "worker-token-of-a-test";

/// A host of workers.
pub struct Host {
    child: Child,
    log: PathBuf,
}

/// What to start.
pub struct HostPlan<'a> {
    pub agent: &'a str,
    /// Indices of the replicas that it may call, the first one first.
    pub calls: &'a [usize],
    pub token: &'a str,
    /// Where its workspaces are; a directory of its own where absent.
    pub data_dir: Option<&'a Path>,
    /// More flags.
    pub flags: &'a [&'a str],
    /// More for its environment.
    pub env: &'a [(&'a str, &'a str)],
    pub command: Vec<String>,
}

impl HostPlan<'_> {
    /// The demo worker, one turn at a time.
    pub fn demo<'a>(agent: &'a str, calls: &'a [usize]) -> HostPlan<'a> {
        let command = vec![program().display().to_string(), "demo-agent".to_owned()];
        HostPlan { agent, calls, token: WORKERS, data_dir: None, flags: &[], env: &[], command }
    }
}

impl Host {
    pub fn start(cluster: &Cluster, plan: HostPlan<'_>) -> Host {
        let urls: Vec<String> = plan.calls.iter().map(|&i| cluster.url(i)).collect();
        Host::at(cluster, &urls, plan)
    }

    /// A host that calls these URLs.
    pub fn at(cluster: &Cluster, urls: &[String], plan: HostPlan<'_>) -> Host {
        let home = cluster.data_dir().parent().unwrap().to_owned();
        let name = format!("host-{:08x}", rand::random::<u32>());
        let token = home.join(format!("{name}.token"));
        fs::write(&token, format!("{}\n", plan.token)).unwrap();
        let log = home.join(format!("{name}.log"));
        let out = File::create(&log).unwrap();
        let own_dir = home.join(&name);
        let mut work = cluster.command("work");
        work.env_remove("LASTWORD_OPERATOR_TOKENS").env_remove("LASTWORD_WORKER_TOKENS");
        work.arg("--token-file").arg(token).args(["--agent", plan.agent]);
        work.arg("--data-dir").arg(plan.data_dir.unwrap_or(&own_dir)).args(["--url", &urls.join(",")]);
        work.args(["--log", "debug"]).args(plan.flags).arg("--").args(plan.command);
        work.envs(plan.env.iter().copied());
        work.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Host { child: child::spawn(work, Signal::SIGKILL).unwrap(), log }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        child::send(&self.child, Signal::SIGTERM).unwrap();
    }

    /// How its process ended.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub async fn wait_exit(&mut self) -> ExitStatus {
        eventually("the host leaves", async || self.exit()).await
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The worker processes of this host: below their guards.
    pub fn workers(&self) -> Vec<i32> {
        children_of(self.pid()).into_iter().flat_map(children_of).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- host {} ---\n{}\n", self.pid(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
