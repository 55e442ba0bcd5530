//! `lastword apply`: creates or changes agents from a TOML file.
//!
//! Checks the whole file before anything is sent, so a file with a mistake changes nothing. Sends the file's
//! fields as they are written: defaults remain the gateway's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use super::{USAGE, address::Address};

use crate::agent::{AgentSpec, Runtime, is_agent_name};
use lastword_client::gateway::segment;

/// Flags of `lastword apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    address: Address,
    /// A TOML file of `[agents.NAME]` tables
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// Sends every agent of the file.
pub async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let agents = match read(&args.file) {
        Ok(agents) => agents,
        Err(why) => {
            note!("error: {why:#}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let gateway = args.address.gateway()?;
    for (name, spec) in &agents {
        let path = format!("/v1/agents/{}", segment(name));
        let put = gateway.call(Method::PUT, &path, Some(spec)).await;
        let stored = put.with_context(|| format!("{}: agents.{name}", args.file.display()))?;
        match stored.get("revision") {
            Some(revision) => note!("{name}: revision {revision}"),
            None => note!("{name}: stored"),
        }
        if runs_here(spec) {
            note!(
                "{name}: its command runs on the gateway's machine, with the gateway's rights unless worker_user is set there"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the gateway itself starts the agent's command.
fn runs_here(spec: &Value) -> bool {
    spec.get("runtime").and_then(Value::as_str) == Some(Runtime::Process.as_str())
}

/// The file, fully parsed; an error names its line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    agents: BTreeMap<String, AgentSpec>,
}

/// The same file, as it was written.
#[derive(Deserialize)]
struct WrittenFile {
    agents: BTreeMap<String, Value>,
}

fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let checked: Checked = toml::from_str(text)?;
    for (name, spec) in &checked.agents {
        if !is_agent_name(name) {
            bail!(
                "agents.{name}: not a name; it takes 1 to 64 of a-z 0-9 - _ . and begins with a letter or digit"
            );
        }
        spec.validate().map_err(|why| anyhow::anyhow!("agents.{name}.{}: {}", why.field, why.why))?;
    }
    let written: WrittenFile = toml::from_str(text)?;
    Ok(written.agents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn what_is_sent_is_what_was_written() {
        let agents = parse("[agents.a]\nruntime = 'process'\ncommand = ['sh']\nidle_ttl = '10m'").unwrap();
        let written = serde_json::json!({"runtime": "process", "command": ["sh"], "idle_ttl": "10m"});
        assert_eq!(agents["a"], written);
    }

    #[test]
    fn a_mistake_names_its_field_and_line() {
        let why = refusal("[agents.a]\nruntime = 'process'\ncommand = ['sh']\nidle = '10m'");
        assert!(why.contains("line 4") && why.contains("`idle`"), "{why}");
        let why = refusal("[agents.a]\nruntime = 'process'\ncommand = ['sh']\nidle_ttl = 'soon'");
        assert!(why.contains("line 4") && why.contains("idle_ttl"), "{why}");
        let why = refusal("[agents.a]\nruntime = 'process'\ncommand = []");
        assert!(why.contains("agents.a.command"), "{why}");
        let why = refusal("[agents.A]\nruntime = 'process'\ncommand = ['sh']");
        assert!(why.contains("agents.A: not a name"), "{why}");
        let why = refusal("[agent.a]\nruntime = 'process'");
        assert!(why.contains("`agent`"), "{why}");
    }
}
