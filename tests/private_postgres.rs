//! A private Postgres starts, survives crashes, restarts and interrupted starts, and never outlives its owner.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lastword_devkit::postgres::{Binaries, Options, Postgres, StopMode};
use sqlx::{Connection, PgConnection};

type Outcome = anyhow::Result<()>;

/// Set in a child of the test, which then plays the process that dies without a word.
const PLAY: &str = "PRIVATE_POSTGRES_PLAY";

#[tokio::test]
async fn a_test_server_takes_connections_and_leaves_nothing_behind() -> Outcome {
    let postgres = Postgres::for_test()?;
    let (pid, data) = (postgres.pid().unwrap(), postgres.data().to_owned());
    assert_eq!(ask(&postgres, "show fsync").await?, "off");
    drop(postgres);
    assert!(!is_alive(pid), "the server outlived its owner");
    assert!(!data.exists(), "{} was left behind", data.display());
    Ok(())
}

#[tokio::test]
async fn a_durable_server_keeps_its_rows_through_a_crash_and_its_address_through_a_restart() -> Outcome {
    let place = Place::new("durable")?;
    let mut postgres = Postgres::start(Options::new(place.data(), Binaries::find(None)?))?;
    let url = postgres.url();
    run(&postgres, "create table kept as select 'kept'::text as word").await?;

    postgres.restart(StopMode::Immediate)?;

    assert_eq!(postgres.url(), url);
    assert_eq!(ask(&postgres, "select word from kept").await?, "kept");
    assert_eq!(ask(&postgres, "show fsync").await?, "on");
    assert_eq!(ask(&postgres, "show server_encoding").await?, "UTF8");
    assert_eq!(ask(&postgres, "show listen_addresses").await?, "127.0.0.1");
    let uninvited = format!("postgres://postgres@127.0.0.1:{}/postgres", postgres.port());
    assert!(PgConnection::connect(&uninvited).await.is_err(), "a stranger on this machine came in");

    postgres.stop(StopMode::Fast)?;
    assert_eq!(postgres.pid(), None);
    drop(postgres);

    let again = Postgres::start(Options::new(place.data(), Binaries::find(None)?))?;
    assert_eq!(ask(&again, "select word from kept").await?, "kept");
    Ok(())
}

#[tokio::test]
async fn settings_and_a_fixed_port_are_obeyed() -> Outcome {
    let place = Place::new("settings")?;
    let free = Postgres::for_test()?.port();
    let mut options = quick(place.data())?;
    options.port = Some(free);
    options.settings.push(("max_connections".to_owned(), "37".to_owned()));
    let postgres = Postgres::start(options)?;
    assert_eq!(postgres.port(), free);
    assert_eq!(ask(&postgres, "show max_connections").await?, "37");
    Ok(())
}

#[tokio::test]
async fn a_server_of_a_killed_owner_is_gone_or_is_stopped_by_the_next_start() -> Outcome {
    let place = Place::new("killed")?;
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "plays_an_owner", "--include-ignored", "--nocapture"])
        .env(PLAY, place.data())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let pid_file = place.data().join("postmaster.pid");
    eventually("the owner starts its server", || read_pid(&pid_file).is_some());
    let orphan = read_pid(&pid_file).unwrap();

    owner.kill()?;
    owner.wait()?;
    // At once: the orphan is still shutting down, or has not even noticed.
    let postgres = Postgres::start(quick(place.data())?)?;

    assert!(!is_alive(orphan), "two servers over one directory");
    assert_eq!(ask(&postgres, "select 'ok'").await?, "ok");
    Ok(())
}

#[test]
fn a_server_does_not_wait_for_the_next_start_to_end() -> Outcome {
    let place = Place::new("orphan")?;
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "plays_an_owner", "--include-ignored", "--nocapture"])
        .env(PLAY, place.data())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid_file = place.data().join("postmaster.pid");
    eventually("the owner starts its server", || read_pid(&pid_file).is_some());
    let orphan = read_pid(&pid_file).unwrap();
    owner.kill()?;
    owner.wait()?;
    eventually("the orphan follows its owner", || !is_alive(orphan));
    Ok(())
}

/// Not a test of its own: run by the tests above as a process to kill.
#[test]
#[ignore = "a part of the tests above"]
fn plays_an_owner() {
    let Some(data) = std::env::var_os(PLAY) else { return };
    let options = quick(PathBuf::from(data)).unwrap();
    let _postgres = Postgres::start(options).unwrap();
    // Ends by being killed; the bound is for a test that fails before it comes to that.
    std::thread::park_timeout(Duration::from_secs(60));
}

#[tokio::test]
async fn a_start_that_was_cut_short_does_not_spoil_the_next() -> Outcome {
    let place = Place::new("cut-short")?;
    let unfinished = place.data().with_extension("unfinished");
    std::fs::create_dir_all(unfinished.join("base"))?;
    std::fs::write(unfinished.join("PG_VERSION"), "15")?;
    std::fs::write(place.data().with_extension("password"), "half")?;
    let postgres = Postgres::start(quick(place.data())?)?;
    assert_eq!(ask(&postgres, "select 'ok'").await?, "ok");
    Ok(())
}

#[tokio::test]
async fn a_directory_with_other_things_in_it_is_refused() -> Outcome {
    let place = Place::new("refused")?;
    std::fs::create_dir_all(place.data())?;
    std::fs::write(place.data().join("thesis.tex"), "irreplaceable")?;
    let why = Postgres::start(quick(place.data())?).unwrap_err().to_string();
    assert!(why.contains("neither empty nor a Postgres data directory"), "{why}");
    Ok(())
}

/// Without waiting for the disk, where durability is not what is tested.
fn quick(data: PathBuf) -> anyhow::Result<Options> {
    Ok(Options { durable: false, ..Options::new(data, Binaries::find(None)?) })
}

/// A directory that any user may reach, unlike one below root's home.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> anyhow::Result<Place> {
        let name = format!("lastword-place-{name}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let place = std::env::temp_dir().join(name);
        std::fs::create_dir(&place)?;
        Ok(Place(place))
    }

    fn data(&self) -> PathBuf {
        self.0.join("postgres")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[allow(clippy::disallowed_methods, reason = "there are no tables to check a query against")]
async fn ask(postgres: &Postgres, question: &'static str) -> anyhow::Result<String> {
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    Ok(sqlx::query_scalar(question).fetch_one(&mut connection).await?)
}

#[allow(clippy::disallowed_methods, reason = "there are no tables to check a query against")]
async fn run(postgres: &Postgres, order: &'static str) -> Outcome {
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    sqlx::query(order).execute(&mut connection).await?;
    Ok(())
}

/// The pid of a server that is ready.
fn read_pid(pid_file: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(pid_file).ok()?;
    text.lines().nth(7).filter(|state| state.trim() == "ready")?;
    text.lines().next()?.parse().ok()
}

/// A process that has ended but was not waited for counts as gone.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        #[allow(clippy::disallowed_methods, reason = "between two looks at a process")]
        std::thread::sleep(Duration::from_millis(10));
    }
}
