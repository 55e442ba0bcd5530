//! Orders: the driver's shell commands, and their variables.
//!
//! Owns their execution. Each command gets $REPLICA, a name that `--list` prints; a command that fails or hangs fails
//! its step.

use std::{
    io,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lastword_devkit::child;
use nix::sys::signal::Signal;
use tokio::time::timeout;

use crate::Args;

/// A roll-out waits for every drain.
const ORDER_MAX: Duration = Duration::from_secs(170);
/// A list is quick.
const LIST_MAX: Duration = Duration::from_secs(20);

/// The commands.
pub struct Orders {
    list: String,
    forward: Option<String>,
}

/// One replica of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What the commands call it.
    pub name: String,
    /// Where it answers, where the list says so.
    pub url: Option<String>,
}

impl Orders {
    /// Those of this run.
    pub fn of(args: &Args) -> Orders {
        Orders { list: args.list.clone(), forward: args.forward.clone() }
    }

    /// Whether URLs are to be made to reach replicas.
    pub fn has_forward(&self) -> bool {
        self.forward.is_some()
    }

    /// The replicas that are ready.
    pub async fn list(&self) -> Result<Vec<Listed>, String> {
        let said =
            timeout(LIST_MAX, self.run(&self.list, "")).await.map_err(|_| "the list hangs".to_owned())??;
        let listed = said.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            Some(Listed { name, url: words.next().map(|url| url.trim_end_matches('/').to_owned()) })
        });
        Ok(listed.collect())
    }

    /// Carries out a command for a replica; its end must be a success.
    pub async fn give(&self, command: &str, replica: &str) {
        let done = timeout(ORDER_MAX, self.run(command, replica)).await;
        match done {
            Ok(Ok(_)) => {}
            Ok(Err(why)) => panic!("`{command}` for `{replica}`: {why}"),
            Err(_) => panic!("`{command}` for `{replica}` is not over after {ORDER_MAX:?}"),
        }
    }

    /// Starts the forward of a port to a replica; it ends with the replica, and with us at the latest.
    pub fn forward(&self, replica: &str, port: u16) -> io::Result<Child> {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(self.forward.as_deref().unwrap_or("false"));
        shell.env("REPLICA", replica).env("PORT", port.to_string());
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        child::spawn(shell, Signal::SIGTERM)
    }

    /// Looks over the whole database: what `verify` said.
    pub async fn verify(&self, args: &Args) -> Result<String, String> {
        if let Some(command) = &args.verify {
            return self.run(command, "").await;
        }
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_lastword"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LASTWORD_") {
                program.env_remove(name);
            }
        }
        let url = args.database_url.as_deref().unwrap_or_default();
        program.args(["verify", "--output", "json"]).env("DATABASE_URL", url).stdin(Stdio::null());
        let done = program.output().await.map_err(|why| why.to_string())?;
        // It leaves with 1 where a rule is broken, and says which.
        match done.stdout.is_empty() {
            true => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            false => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        }
    }

    async fn run(&self, command: &str, replica: &str) -> Result<String, String> {
        let mut shell = tokio::process::Command::new("sh");
        shell.arg("-c").arg(command).env("REPLICA", replica).stdin(Stdio::null()).kill_on_drop(true);
        let done = shell.output().await.map_err(|why| why.to_string())?;
        if !done.status.success() {
            return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }
}
