//! The binary: a worker's guard, or the command line on a runtime.
//!
//! Owns the order of start-up. The guard runs before clap and before any runtime starts a thread, because its changes
//! to its own process must not affect other threads. A command takes its secrets out of the environment while the
//! process still has one thread.

use std::process::ExitCode;

use lastword::{cli, host};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "__guard") {
        return ExitCode::from(u8::try_from(host::process::guard::run()).unwrap_or(1));
    }
    let command = cli::parse();
    // One provider for the whole process: two are linked, and rustls panics on its default unless one is chosen.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another part of this process has chosen a crypto provider");
        return ExitCode::FAILURE;
    }
    if let Err(why) = cli::seclude(&command) {
        eprintln!("error: cannot protect this process's memory from other processes: {why}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("error: cannot start the runtime: {why}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run(command));
    // A pending read of stdin would otherwise block the exit.
    runtime.shutdown_background();
    code
}
