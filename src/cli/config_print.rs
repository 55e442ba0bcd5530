//! `config print`: shows the configuration a replica would use here, without secrets.

use std::{io::Write, path::PathBuf, process::ExitCode};

use crate::config::{Config, Overrides, Surroundings};

/// Prints the configuration that `serve` would run with here, secrets hidden.
#[derive(Debug, clap::Args)]
pub struct ConfigPrintArgs {
    /// The configuration file [default: lastword.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Prints TOML to stdout. If `serve` would refuse it, prints the reason to stderr and exits with 1.
///
/// # Errors
/// A source is unreadable or invalid, or stdout is closed.
pub async fn run(args: ConfigPrintArgs) -> anyhow::Result<ExitCode> {
    let flags = Overrides { config: args.config, ..Overrides::default() };
    let config = Config::read(flags, &Surroundings::of_this_process()?)?;
    std::io::stdout().write_all(config.redacted().as_bytes())?;
    // Printed before the check, since the configuration helps to understand a refusal.
    if let Err(why) = config.validate() {
        note!("serve would refuse this: {why}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
