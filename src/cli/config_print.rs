//! `config print`: the configuration that a replica would run with here, secrets hidden.

use std::{io::Write, path::PathBuf, process::ExitCode};

use crate::config::{Config, Overrides, Surroundings};

/// Prints the configuration that `serve` would run with here, secrets hidden.
#[derive(Debug, clap::Args)]
pub struct ConfigPrintArgs {
    /// The configuration file [default: lastword.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Prints TOML to stdout; what `serve` would refuse goes to stderr and makes the exit code 1.
///
/// # Errors
/// A source that cannot be read or means nothing, or a stdout that is closed.
pub async fn run(args: ConfigPrintArgs) -> anyhow::Result<ExitCode> {
    let flags = Overrides { config: args.config, ..Overrides::default() };
    let config = Config::read(flags, &Surroundings::of_this_process()?)?;
    std::io::stdout().write_all(config.redacted().as_bytes())?;
    // Shown first: whoever asks why it is refused wants to see it.
    if let Err(why) = config.validate() {
        note!("serve would refuse this: {why}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
