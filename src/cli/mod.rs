//! The command line: the tree of commands, and the file of each.
//!
//! Each command is one file with its `Args` and its `run`. Usage errors exit with 2 (clap's default); an error
//! without an exit code of its own exits with 1.

#[macro_use]
pub mod say;

mod arguments;
mod bench;
mod client;
mod config_print;
mod database;
pub mod demo_agent;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod migrate;
mod serve;
mod verify;
mod work;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use nix::sys::prctl;

pub use self::{arguments::refuse_secrets, client::TokenArgs};
use crate::{config::kept, host::process::strays};

/// A gateway for chat agents in which every accepted turn gets exactly one last word.
#[derive(Parser)]
#[command(name = "lastword", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

/// One command and its arguments.
#[derive(Subcommand)]
pub enum CliCommand {
    /// Run replicas, a private Postgres and a demo agent on this machine.
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Kill a replica and watch the other one write the last word; takes half a minute.
    #[cfg(feature = "dev")]
    Demo(dev::demo::DemoArgs),
    /// Run one replica.
    Serve(serve::ServeArgs),
    /// Host a worker program for a gateway reached over HTTP.
    Work(work::Args),
    /// Bring the database's tables up to date.
    Migrate(migrate::MigrateArgs),
    /// Create or change agents from a TOML file.
    Apply(client::apply::ApplyArgs),
    /// Talk to an agent.
    Chat(client::chat::ChatArgs),
    /// List, show, tail and cancel turns.
    Turns(client::turns::TurnsArgs),
    /// List, show and delete conversations.
    Conversations(client::conversations::ConversationsArgs),
    /// List, show and delete agents.
    Agents(client::agents::AgentsArgs),
    /// List and stop workers.
    Workers(client::workers::WorkersArgs),
    /// Create, list and revoke tokens of remote workers.
    WorkerTokens(client::worker_tokens::WorkerTokensArgs),
    /// List replicas.
    Replicas(client::replicas::ReplicasArgs),
    /// Check Postgres and this machine for problems, with a remedy for each.
    Doctor(doctor::DoctorArgs),
    /// Check the invariants over the whole database.
    Verify(verify::VerifyArgs),
    /// Show the configuration.
    Config {
        /// Subcommand.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Measure the gateway's speed against this machine's limits; needs `lastword-bench`.
    Bench(bench::BenchArgs),
    /// A worker that fails on request in the ways in which workers fail by accident.
    DemoAgent(demo_agent::DemoAgentArgs),
}

/// The commands about configuration.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in effect, secrets redacted.
    Print(config_print::ConfigPrintArgs),
}

/// Parses the command line; exits with 2 if it is invalid or contains a secret.
pub fn parse() -> CliCommand {
    let command = Cli::parse().command;
    if let Err(why) = arguments::refuse_secrets(std::env::args_os().skip(1)) {
        Cli::command().error(ErrorKind::ValueValidation, why).exit();
    }
    command
}

/// The tree of commands, for tests that compare documents with it.
#[must_use]
pub fn tree() -> clap::Command {
    Cli::command()
}

/// Hides this process's memory and secrets from the programs it starts, for commands that start other people's
/// programs. Secrets are removed from the environment after they are read. Must be called before any thread runs.
///
/// # Errors
/// The operating system's error.
pub fn seclude(command: &CliCommand) -> io::Result<()> {
    if !matches!(command, CliCommand::Serve(_) | CliCommand::Work(_)) {
        return Ok(());
    }
    prctl::set_dumpable(false)?;
    strays::take_in()?;
    if matches!(command, CliCommand::Serve(_)) {
        #[allow(unsafe_code, reason = "an environment has no safe form of forgetting")]
        // SAFETY: the caller promises that no other thread runs.
        unsafe {
            kept::keep();
        }
    }
    Ok(())
}

/// Runs one command. Returns its exit code.
pub async fn run(command: CliCommand) -> ExitCode {
    let done = match command {
        #[cfg(feature = "dev")]
        CliCommand::Dev(args) => dev::run(args).await,
        #[cfg(feature = "dev")]
        CliCommand::Demo(args) => dev::demo::run(args).await,
        CliCommand::Serve(args) => serve::run(args).await,
        CliCommand::Work(args) => work::run(args).await,
        CliCommand::Migrate(args) => migrate::run(args).await,
        CliCommand::Apply(args) => client::apply::run(args).await,
        CliCommand::Chat(args) => client::chat::run(args).await,
        CliCommand::Turns(args) => client::turns::run(args).await,
        CliCommand::Conversations(args) => client::conversations::run(args).await,
        CliCommand::Agents(args) => client::agents::run(args).await,
        CliCommand::Workers(args) => client::workers::run(args).await,
        CliCommand::WorkerTokens(args) => client::worker_tokens::run(args).await,
        CliCommand::Replicas(args) => client::replicas::run(args).await,
        CliCommand::Doctor(args) => doctor::run(args).await,
        CliCommand::Verify(args) => verify::run(args).await,
        CliCommand::Config { command: ConfigCommand::Print(args) } => config_print::run(args).await,
        CliCommand::Bench(args) => bench::run(args),
        CliCommand::DemoAgent(args) => demo_agent::run(args).await,
    };
    done.unwrap_or_else(|why| {
        note!("error: {why:#}");
        client::exit_code(&why)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        super::Cli::command().debug_assert();
    }
}
