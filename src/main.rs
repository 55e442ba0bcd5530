//! The binary: a worker's shim, or the command line on a runtime.
//!
//! Owns the order of the two: the shim runs before clap and before any runtime has a thread, since
//! what it does to its own process must not be shared with other threads.

use std::process::ExitCode;

use lastword::{cli, worker};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "__shim") {
        return ExitCode::from(u8::try_from(worker::shim::run()).unwrap_or(1));
    }
    let command = cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("error: cannot start the runtime: {why}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run(command));
    // A read of stdin that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    code
}
