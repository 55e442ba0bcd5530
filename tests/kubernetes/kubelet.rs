//! The node of the scripted cluster: it runs a pod's worker as a process of this machine, if a test wants that.
//!
//! Owns those processes and their ends. It starts what the manifest says, with the manifest's variables and files; a
//! container's image, limits and user are shown by a real node only.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use lastword_devkit::child;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    support::{eventually, program},
    world::World,
};

/// A node.
pub struct Kubelet {
    world: Arc<World>,
    home: PathBuf,
    running: Mutex<HashMap<String, Child>>,
}

impl Kubelet {
    pub fn new(world: Arc<World>, home: PathBuf) -> Kubelet {
        Kubelet { world, home, running: Mutex::default() }
    }

    /// Starts the pod's worker, and says so.
    pub fn run(&self, name: &str) {
        self.run_towards(name, None);
    }

    /// The same, where home is found at `url`: a Service that knows every replica.
    pub fn run_towards(&self, name: &str, url: Option<&str>) {
        let pod = self.world.pod(name).unwrap_or_else(|| panic!("no pod {name}"));
        let container = &pod["spec"]["containers"][0];
        let dir = self.home.join(name);
        fs::create_dir_all(&dir).unwrap();
        let token = dir.join("token");
        fs::write(&token, pod["metadata"]["annotations"]["lastword/token"].as_str().unwrap()).unwrap();
        let here = |word: &str| match word {
            "lastword" => program().display().to_string(),
            "/workspace" => dir.display().to_string(),
            "/run/lastword/token" => token.display().to_string(),
            other => other.replace("$$(", "$("),
        };
        let words = |field: &str| container[field].as_array().cloned().unwrap_or_default();
        let mut words = [words("command"), words("args")].concat().into_iter();
        let mut next = || words.next().map(|word: Value| here(word.as_str().unwrap()));
        let mut command = Command::new(next().expect("a program"));
        while let Some(word) = next() {
            command.arg(word);
        }
        command.env_clear().env("PATH", std::env::var("PATH").unwrap());
        for variable in container["env"].as_array().unwrap() {
            let value = variable["value"].as_str().expect("a value of its own");
            command.env(variable["name"].as_str().unwrap(), here(value));
        }
        url.map(|url| command.env("LASTWORD_URL", url));
        let log = File::create(dir.join("log")).unwrap();
        command.current_dir(&dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = child::spawn(command, Signal::SIGKILL).unwrap();
        self.running.lock().unwrap().insert(name.to_owned(), child);
        self.world.set_worker(name, "Running", json!({"running": {}}));
    }

    /// Kills the pod's worker at once, and says nothing.
    pub fn kill(&self, name: &str) {
        let mut child = self.running.lock().unwrap().remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the pod's worker ends by itself, and tells its exit code.
    pub async fn reap(&self, name: &str) -> i32 {
        let code = eventually("the worker ends", async || {
            let status = self.running.lock().unwrap().get_mut(name)?.try_wait().unwrap()?;
            Some(status.code().unwrap_or(137))
        })
        .await;
        self.running.lock().unwrap().remove(name);
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let reason = if code == 0 { "Completed" } else { "Error" };
        self.world.set_worker(name, phase, json!({"terminated": {"exitCode": code, "reason": reason}}));
        code
    }

    /// What the pod's worker wrote to its log.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.home.join(name).join("log")).unwrap_or_default()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let is_panicking = std::thread::panicking();
        for (name, mut child) in self.running.get_mut().unwrap().drain() {
            let _ = child.kill();
            let _ = child.wait();
            if is_panicking {
                let log = fs::read_to_string(self.home.join(&name).join("log")).unwrap_or_default();
                eprintln!("--- {name} ---\n{log}");
            }
        }
    }
}
