//! How a fleet is started: how many replicas of which program, in which environment, on which database.

use std::{path::PathBuf, time::Duration};

use lastword_devkit::postgres::Postgres;

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many slots.
    pub slots: usize,
    /// More for the replicas' environment; it overrides ours.
    pub env: Vec<(String, String)>,
    /// What a slot's replica reaches Postgres by, where it is not the server's own URL.
    pub database_urls: Vec<String>,
    /// Turns that one replica runs at once.
    pub turns_max: u32,
    /// How long running turns get to end after a SIGTERM.
    pub drain: Duration,
    /// The program that a slot runs, where it is not the one under test.
    pub programs: Vec<PathBuf>,
    /// More for the environment of one slot's replicas.
    pub slot_env: Vec<(usize, String, String)>,
    /// Files that a replica may have open, where that is not what this machine permits.
    pub open_files: Option<u64>,
    /// Said to the database before the tables are made.
    pub prelude: Vec<&'static str>,
    /// Where sessions of replicas look for what a statement names without a schema.
    pub search_path: Option<&'static str>,
}

impl Plan {
    /// So many slots and nothing special.
    pub fn slots(slots: usize) -> Plan {
        Plan {
            slots,
            env: Vec::new(),
            database_urls: Vec::new(),
            turns_max: 64,
            drain: Duration::from_secs(5),
            programs: Vec::new(),
            slot_env: Vec::new(),
            open_files: None,
            prelude: Vec::new(),
            search_path: None,
        }
    }

    /// The same with one more variable for every replica.
    pub fn env(mut self, name: &str, value: &str) -> Plan {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The database that a fleet stands on.
pub enum Ground {
    /// A private server of the fleet's own.
    Own(Box<Postgres>),
    /// Somebody else's, at this URL.
    Lent(String),
}
