//! `lastword bench`: runs `lastword-bench`, if installed beside this program.
//!
//! Measuring is a separate program, so that no gateway contains its SQL.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::Context as _;

/// What `lastword-bench` is given.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct BenchArgs {
    /// Arguments for `lastword-bench`; `--help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Replaces this process with `lastword-bench`.
///
/// # Errors
/// `lastword-bench` is not installed beside this program.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let bench = own.with_file_name("lastword-bench");
    let why = Command::new(&bench).args(args.words).exec();
    Err(why).with_context(|| {
        format!(
            "bench needs lastword-bench beside this program: {} (built by `cargo build -p lastword-bench`)",
            bench.display()
        )
    })
}
