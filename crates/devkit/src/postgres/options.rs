//! The options that a private Postgres is started with.

use std::path::PathBuf;

use super::binaries::Binaries;

/// What a private Postgres is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; initialised when empty.
    pub data: PathBuf,
    /// A fixed port of 127.0.0.1; `None` takes a free one.
    pub port: Option<u16>,
    /// Server settings that override ours, such as `("wal_level", "logical")`.
    pub settings: Vec<(String, String)>,
    /// Whether a commit survives a power cut. Only throw-away databases say no. All of them ask for the
    /// random password that they got when they were initialised.
    pub durable: bool,
    /// The programs to run.
    pub binaries: Binaries,
    /// Where the server's log goes; `None` means `server.log` in the data directory.
    pub log: Option<PathBuf>,
}

impl Options {
    /// A durable server over `data` on a free port.
    pub fn new(data: PathBuf, binaries: Binaries) -> Self {
        Options { data, port: None, settings: Vec::new(), durable: true, binaries, log: None }
    }
}
