//! The binary: hands over to [`lastword::cli`].

fn main() {
    // Before anything else: the guard of a worker is this same binary, and must stay small.
    if std::env::args_os().nth(1).is_some_and(|mode| mode == "__shim") {
        std::process::exit(lastword::worker::shim::run());
    }
}
