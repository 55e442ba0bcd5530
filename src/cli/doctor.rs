//! `lastword doctor`.

use std::process::ExitCode;

/// Its flags.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub async fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`lastword doctor` is not there yet")
}
