//! PgBouncer in transaction mode: every transaction may run on another backend than the previous one.
//!
//! Owns the process and its directory. Refuses a release without prepared statements: its drill is then skipped, and
//! must say so. Keeps: a dropped pooler leaves nothing behind.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use lastword_devkit::child;
use nix::{
    sys::signal::Signal,
    unistd::{Uid, User},
};

/// How long a start or an end may take. Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first release that prepares a client's statements on whichever backend it gets.
const PREPARES_SINCE: (u32, u32) = (1, 21);
/// Names the program, as an environment variable.
const VARIABLE: &str = "LASTWORD_PGBOUNCER";
/// Where Debian puts it, which is not on everybody's path.
const DEBIAN: &str = "/usr/sbin";
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const START_TRIES_MAX: u32 = 20;

/// The program, where this machine has one that will do.
#[derive(Debug, Clone)]
pub struct Pooler {
    program: PathBuf,
    version: String,
}

impl Pooler {
    /// Looks where `LASTWORD_PGBOUNCER` says, where `.ci/pgbouncer` puts it, on the path, and in Debian's place.
    ///
    /// # Errors
    /// Why there is none that will do, for the report.
    pub fn find() -> Result<Pooler, String> {
        let named = env::var_os(VARIABLE).map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/pgbouncer");
        let dirs = [own].into_iter().chain(env::split_paths(&path)).chain([PathBuf::from(DEBIAN)]);
        let found = named.or_else(|| dirs.map(|dir| dir.join("pgbouncer")).find(|program| program.is_file()));
        Pooler::open(&found.ok_or("no PgBouncer on this machine: run .ci/pgbouncer")?)
    }

    /// Takes this program.
    ///
    /// # Errors
    /// Why it will not do.
    fn open(program: &Path) -> Result<Pooler, String> {
        let said = Command::new(program).arg("--version").output();
        let said = said.map_err(|why| format!("{}: {why}", program.display()))?;
        let version = version_in(&String::from_utf8_lossy(&said.stdout))?;
        Ok(Pooler { program: program.to_owned(), version })
    }

    /// The program where the user it runs as may enter. One with libraries of its own stands where only this user may.
    fn enterable(&self, home: &Home) -> anyhow::Result<PathBuf> {
        let place = self.program.parent().filter(|place| place.join("lib").is_dir());
        let (Some(place), Some(_)) = (place, home.1) else { return Ok(self.program.clone()) };
        let copied = Command::new("cp").arg("-r").arg(place).arg(home.0.join("program")).status()?;
        anyhow::ensure!(copied.success(), "{} cannot be copied", place.display());
        Ok(home.0.join("program").join("pgbouncer"))
    }

    /// The version, such as `1.24.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts one before the Postgres of this URL, with at most `backends` connections to it, and returns
    /// when it listens. It asks for the same password.
    ///
    /// # Errors
    /// It does not start; the message is its log.
    pub fn start(&self, upstream: &str, backends: u32) -> anyhow::Result<Pool> {
        let upstream = reqwest::Url::parse(upstream)?;
        let password = upstream.password().context("the URL has no password")?;
        for _ in 0..START_TRIES_MAX {
            let home = Home::make()?;
            let port = free_port()?;
            let log = home.0.join("log");
            let file = home.0.join("pgbouncer.ini");
            fs::write(&file, config(&home.0, port, &upstream, backends))?;
            fs::write(home.0.join("users"), format!("\"postgres\" \"{password}\"\n"))?;
            let out = File::create(&log)?;
            let mut command = Command::new(self.enterable(&home)?);
            command.env_clear().env("LC_ALL", "C").current_dir(&home.0).arg(&file);
            command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
            if let Some((uid, gid)) = home.1 {
                command.uid(uid).gid(gid);
            }
            let process = child::spawn(command, Signal::SIGKILL)?;
            let address = ([127, 0, 0, 1], port).into();
            let mut pool = Pool { process, password: password.to_owned(), address, home };
            let mut is_up = false;
            child::wait(PATIENCE, || {
                is_up = pool.log().contains("process up");
                is_up || !matches!(pool.process.try_wait(), Ok(None))
            });
            if is_up {
                return Ok(pool);
            }
            let said = pool.log();
            // Another process was faster.
            if !said.contains("already in use") {
                bail!("{} did not start:\n{said}", self.program.display());
            }
        }
        bail!("no free port in {START_TRIES_MAX} tries")
    }
}

/// The version in what `pgbouncer --version` says; why it will not do, where it is too old.
pub fn version_in(said: &str) -> Result<String, String> {
    let version = said.lines().next().and_then(|line| line.strip_prefix("PgBouncer "));
    let version = version.ok_or_else(|| format!("not a version of PgBouncer: `{said}`"))?;
    let mut numbers = version.split('.').filter_map(|number| number.parse::<u32>().ok());
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if number < PREPARES_SINCE {
        let (major, minor) = PREPARES_SINCE;
        return Err(format!("PgBouncer {version} knows no prepared statements; {major}.{minor} does"));
    }
    Ok(version.to_owned())
}

/// A running pooler.
#[derive(Debug)]
pub struct Pool {
    process: Child,
    password: String,
    address: SocketAddr,
    home: Home,
}

impl Pool {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The database, by way of it.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@{}/postgres", self.password, self.address)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.0.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where its files are, and who else than root it runs as.
#[derive(Debug)]
struct Home(PathBuf, Option<(u32, u32)>);

impl Home {
    fn make() -> anyhow::Result<Home> {
        let user = match Uid::effective().is_root() {
            true => Some(
                User::from_name("nobody")?
                    .context("PgBouncer does not run as root, and nobody else is here")?,
            ),
            false => None,
        };
        let name = format!("lastword-pooler-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let dir = env::temp_dir().join(name);
        // The password lies in it.
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let user = user.map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        let (uid, gid) = user.unzip();
        std::os::unix::fs::chown(&dir, uid, gid)?;
        Ok(Home(dir, user))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(home: &Path, port: u16, upstream: &reqwest::Url, backends: u32) -> String {
    let (host, at) = (upstream.host_str().unwrap_or_default(), upstream.port().unwrap_or(5432));
    let users = home.join("users");
    let users = users.display();
    format!(
        "[databases]\n\
         postgres = host={host} port={at} dbname=postgres\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = scram-sha-256\n\
         auth_file = {users}\n\
         pool_mode = transaction\n\
         max_prepared_statements = 200\n\
         default_pool_size = {backends}\n\
         max_client_conn = 1000\n\
         # The one that rested longest comes first: no client gets its last backend back by luck.\n\
         server_round_robin = 1\n\
         server_login_retry = 1\n\
         ignore_startup_parameters = extra_float_digits\n"
    )
}

fn free_port() -> anyhow::Result<u16> {
    let port = (0..100)
        .map(|_| rand::random_range(PORTS))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    port.context("no free port")
}
