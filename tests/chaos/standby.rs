//! A primary with a streaming standby, and a failover by `kill -9`.
//!
//! Owns both servers and the network between them, a [`Proxy`]. Neither waits for a disk: processes die here, never the
//! machine. Keeps: a dropped pair leaves nothing behind.
//!
//! ```text
//! start ──► primary + standby ──fail_over──► primary alone ──restore_standby──► primary + standby
//! ```

#![allow(clippy::disallowed_methods, reason = "it asks Postgres by SQL of its own")]

#[path = "server.rs"]
mod server;

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use lastword_devkit::postgres::{Postgres, StopMode as Stop};
use sqlx::{Connection as _, Executor as _, PgConnection};

use self::server::{Programs, Server};
use crate::proxy::{Proxy, Weather};

/// How long a standby may take to come up and catch up. Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What every server of a pair is started with.
const SETTINGS: [(&str, &str); 14] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", "."),
    ("max_connections", "200"),
    ("search_path", "lastword, public"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "on"),
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("wal_keep_size", "512MB"),
    // A standby that is held back is neither thrown out nor gives up.
    ("wal_sender_timeout", "0"),
    ("wal_receiver_timeout", "0"),
    ("wal_retrieve_retry_interval", "100ms"),
    // In the data directory, so that it goes with it after a `kill -9`.
    ("dynamic_shared_memory_type", "mmap"),
];

/// Whether a commit waits for the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What a client was told is on the standby: a fail-over loses nothing.
    Synchronous,
    /// The standby may be behind: a fail-over loses what it had not received.
    Asynchronous,
}

/// A primary, and its standby while it has one.
#[derive(Debug)]
pub struct Pair {
    mode: Mode,
    programs: Programs,
    primary: Server,
    standby: Option<Standby>,
    home: Home,
    servers_made: u32,
}

/// A standby, and the net over which it streams. In this order they are dropped.
#[derive(Debug)]
struct Standby {
    server: Server,
    net: Proxy,
}

impl Pair {
    /// Starts both; returns when the standby streams and, where commits are to wait for it, they do.
    ///
    /// # Errors
    /// A program of Postgres is missing or fails.
    pub async fn start(mode: Mode) -> anyhow::Result<Pair> {
        let programs = Programs::find()?;
        let home = Home::make()?;
        let data = home.0.join("server-0");
        // A test's server comes with a directory from the cache: a tenth of the time of `initdb`.
        let mut made = Postgres::for_test()?;
        made.stop(Stop::Fast)?;
        fs::rename(made.data(), &data)?;
        // Ours, and a copy of the directory takes every file with it.
        fs::remove_file(data.join("server.log"))?;
        let primary = Server::start(&programs, data, &SETTINGS).await?;
        let mut pair = Pair { mode, programs, primary, standby: None, home, servers_made: 1 };
        pair.restore_standby().await?;
        Ok(pair)
    }

    /// Where the primary listens.
    pub fn primary_addr(&self) -> SocketAddr {
        self.primary.address()
    }

    /// Where to connect to the primary; it changes with a fail-over.
    pub fn primary_url(&self) -> String {
        self.primary.url()
    }

    /// Where to connect to the standby, to read.
    pub fn standby_url(&self) -> Option<String> {
        self.standby.as_ref().map(|standby| standby.server.url())
    }

    /// The directory of its servers.
    pub fn home(&self) -> &Path {
        &self.home.0
    }

    /// Waits until the standby has all that is committed, then keeps from it all that is committed
    /// later. With a synchronous standby, commits wait from then on.
    ///
    /// # Errors
    /// There is no standby, or it does not catch up.
    pub async fn hold_back(&self) -> anyhow::Result<()> {
        let standby = self.standby.as_ref().context("there is no standby to hold back")?;
        let mut primary = PgConnection::connect(&self.primary.url()).await?;
        let now: String =
            sqlx::query_scalar("select pg_current_wal_insert_lsn()::text").fetch_one(&mut primary).await?;
        // One record more, and flushed: the place itself may be a page's head, which nobody is sent alone.
        primary.execute("select pg_logical_emit_message(true, 'pair', 'fence')").await?;
        let has_it = "select coalesce(bool_or(flush_lsn >= $1::pg_lsn), false) from pg_stat_replication";
        let until = Instant::now() + PATIENCE;
        while !sqlx::query_scalar::<_, bool>(has_it).bind(&now).fetch_one(&mut primary).await? {
            if Instant::now() > until {
                bail!("the standby does not catch up to {now}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        standby.net.set(Weather::Hold);
        Ok(())
    }

    /// Lets the standby catch up again.
    pub fn let_through(&self) {
        if let Some(standby) = &self.standby {
            standby.net.set(Weather::Clear);
        }
    }

    /// SIGKILLs every process of the primary, makes the standby the primary, and returns where it
    /// listens when it takes writes. It has no standby then, and no commit waits for one.
    ///
    /// # Errors
    /// There is no standby, or it cannot be promoted.
    ///
    /// Blocks for the moment in which processes die.
    pub async fn fail_over(&mut self) -> anyhow::Result<SocketAddr> {
        let Standby { server, net } = self.standby.take().context("there is no standby to fail over to")?;
        self.primary.kill()?;
        server.promote(&self.programs).await?;
        drop(net);
        let dead = std::mem::replace(&mut self.primary, server);
        fs::remove_dir_all(dead.data())?;
        Ok(self.primary.address())
    }

    /// Makes a standby from scratch, a copy of the primary as it is now.
    ///
    /// # Errors
    /// There is one already, or it cannot be made.
    pub async fn restore_standby(&mut self) -> anyhow::Result<()> {
        if self.standby.is_some() {
            bail!("there is a standby already");
        }
        let net = Proxy::start(self.primary.address())?;
        let data = self.home.0.join(format!("server-{}", self.servers_made));
        self.servers_made += 1;
        self.programs.make_dir(&data)?;
        let (at, port) = (data.to_string_lossy().into_owned(), self.primary.address().port().to_string());
        // Past the net, which is for what streams: a copy has nothing to be held back.
        let from = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        let how = ["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--no-manifest"];
        let args = [&["-D", &at], from.as_slice(), how.as_slice()].concat();
        let password = self.primary.password();
        self.programs.run("pg_basebackup", &data, &args, Some(password)).await?;
        fs::write(data.join("standby.signal"), "")?;
        let port = net.address().port();
        let source =
            format!("host=127.0.0.1 port={port} user=postgres password={password} application_name=standby");
        // Not among the arguments, which every user of this machine sees. The last line of a name counts.
        let mut settings = File::options().append(true).open(data.join("postgresql.auto.conf"))?;
        writeln!(settings, "primary_conninfo = '{source}'")?;
        let server = Server::start(&self.programs, data, &SETTINGS).await?;
        self.standby = Some(Standby { server, net });
        self.wait_until_it_streams().await
    }

    async fn wait_until_it_streams(&self) -> anyhow::Result<()> {
        let mut primary = PgConnection::connect(&self.primary.url()).await?;
        let wanted = match self.mode {
            Mode::Synchronous => {
                self.make_synchronous(&mut primary).await?;
                "sync"
            }
            Mode::Asynchronous => "async",
        };
        let streams =
            "select count(*) = 1 from pg_stat_replication where state = 'streaming' and sync_state = $1";
        let until = Instant::now() + PATIENCE;
        while !sqlx::query_scalar::<_, bool>(streams).bind(wanted).fetch_one(&mut primary).await? {
            if Instant::now() > until {
                bail!("the standby does not stream");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Has every commit from now on wait for the standby. Made anew at each primary: the copy that the
    /// standby was made from did not have it, so that a fail-over leaves a primary that waits for nobody.
    async fn make_synchronous(&self, primary: &mut PgConnection) -> anyhow::Result<()> {
        primary.execute("alter system set synchronous_standby_names = '*'").await?;
        primary.execute("select pg_reload_conf()").await?;
        let until = Instant::now() + PATIENCE;
        loop {
            // A session that is born with it was born after the server had read it.
            let mut fresh = PgConnection::connect(&self.primary.url()).await?;
            let names: String =
                sqlx::query_scalar("show synchronous_standby_names").fetch_one(&mut fresh).await?;
            if names == "*" {
                // The process that writes checkpoints tells the others to wait; it takes in new
                // settings before it begins one.
                fresh.execute("checkpoint").await?;
                return Ok(());
            }
            if Instant::now() > until {
                bail!("the primary does not take in its settings");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The directory of a pair's servers; they are dropped before it.
#[derive(Debug)]
struct Home(PathBuf);

impl Home {
    /// Made by hand: the user of Postgres must be able to walk through it.
    fn make() -> anyhow::Result<Home> {
        let name = format!("lastword-pair-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let home = fs::canonicalize(std::env::temp_dir())?.join(name);
        fs::create_dir(&home)?;
        Ok(Home(home))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
