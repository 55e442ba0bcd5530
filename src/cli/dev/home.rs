//! The directory of one `dev`: its lock, its tokens, and `dev.json`.
//!
//! Keeps: one `dev` at a time in a directory, and no file that other users of the machine can read.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

/// The file with a client's `Authorization` header.
pub(super) const CLIENT_HEADER: &str = "client.header";
/// The page that opens the console.
pub(super) const CONSOLE: &str = "console.html";

/// The content of `dev.json`, for other commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DevState {
    /// The process id of `dev` itself.
    pub(super) pid: u32,
    /// The replicas' base URLs.
    pub(super) urls: Vec<String>,
    /// The URL of the database.
    pub(super) database_url: String,
    pub(super) postgres: PostgresState,
    pub(super) replicas: Vec<ReplicaState>,
}

/// The private Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PostgresState {
    pub(super) pid: Option<u32>,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplicaState {
    pub(super) name: char,
    pub(super) url: String,
    pub(super) pid: Option<u32>,
    pub(super) log: PathBuf,
}

/// The directory, locked until dropped.
pub(super) struct DevHome {
    dir: PathBuf,
    _lock: File,
}

impl DevHome {
    /// Creates the directory if missing, and locks it.
    pub(super) fn open(dir: &Path) -> anyhow::Result<DevHome> {
        // For root, Postgres runs as another user who must pass through; the files themselves stay private.
        let mode = if Uid::effective().is_root() { 0o711 } else { 0o700 };
        let make = || DirBuilder::new().recursive(true).mode(mode).create(dir);
        make().with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        let lock =
            private(&dir.join("lock")).with_context(|| format!("cannot write in {}", dir.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(DevHome { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("{}", already_running(&dir)),
            Err(TryLockError::Error(why)) => {
                Err(why).with_context(|| format!("cannot lock {}", dir.display()))
            }
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The operator's token, created at the first start and kept.
    pub(super) fn operator_token(&self) -> anyhow::Result<String> {
        self.kept("operator.token")
    }

    /// The client token, created at the first start and kept. Also writes `client.header` for `curl -H @FILE`,
    /// since every user of this machine can read a process's arguments.
    pub(super) fn client_token(&self) -> anyhow::Result<String> {
        let token = self.kept("client.token")?;
        write_whole(&self.dir.join(CLIENT_HEADER), &format!("Authorization: Bearer {token}"))?;
        Ok(token)
    }

    /// Writes a page that opens the console at this URL with the operator's token. The token is in the fragment,
    /// which browsers never send; the page's own address contains no secret.
    pub(super) fn write_console(&self, url: &str, token: &str) -> anyhow::Result<()> {
        let page =
            format!("<!doctype html><meta http-equiv=\"refresh\" content=\"0; url={url}/#token={token}\">");
        write_whole(&self.dir.join(CONSOLE), &page)
    }

    fn kept(&self, name: &str) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
            Ok(_) => {}
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(why).with_context(|| format!("cannot read {}", path.display())),
        }
        let token: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        write_whole(&path, &token)?;
        Ok(token)
    }

    /// Publishes the state for other commands.
    pub(super) fn publish(&self, state: &DevState) -> anyhow::Result<()> {
        write_whole(&self.dir.join("dev.json"), &serde_json::to_string_pretty(state)?)
    }

    /// The state of the last run, if it did not stop in order.
    pub(super) fn last_state(&self) -> Option<DevState> {
        state_in(&self.dir)
    }

    /// Removes the published state.
    pub(super) fn retract(&self) {
        let _ = fs::remove_file(self.dir.join("dev.json"));
    }
}

fn already_running(dir: &Path) -> String {
    let who = state_in(dir)
        .map_or_else(String::new, |state| format!(" (process {}, {})", state.pid, state.urls.join(" and ")));
    format!(
        "`lastword dev` already runs in {}{who}; stop it first, or name another directory with --data \
         and another --port",
        dir.display()
    )
}

fn state_in(dir: &Path) -> Option<DevState> {
    serde_json::from_str(&fs::read_to_string(dir.join("dev.json")).ok()?).ok()
}

/// Replaces the file by a rename, so that readers never see half of it.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let write = || {
        let _ = fs::remove_file(&unfinished);
        let mut file = private(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Opens a file for writing that no other user of this machine may read.
pub(super) fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn state() -> DevState {
        DevState {
            pid: 1,
            urls: vec!["http://127.0.0.1:8080".to_owned()],
            database_url: "postgres://postgres@127.0.0.1:20000/postgres".to_owned(),
            postgres: PostgresState { pid: Some(2), data: "/data".into(), log: "/log".into() },
            replicas: vec![],
        }
    }

    #[test]
    fn a_second_dev_in_one_directory_is_refused_and_told_of_the_first() {
        let place = tempfile::tempdir().unwrap();
        let first = DevHome::open(place.path()).unwrap();
        first.publish(&state()).unwrap();
        let why = DevHome::open(place.path()).err().unwrap().to_string();
        assert!(why.contains("process 1, http://127.0.0.1:8080"), "{why}");
        drop(first);
        assert!(DevHome::open(place.path()).is_ok());
    }

    #[test]
    fn the_token_is_kept_between_two_starts_and_private() {
        let place = tempfile::tempdir().unwrap();
        let token = DevHome::open(place.path()).unwrap().operator_token().unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(DevHome::open(place.path()).unwrap().operator_token().unwrap(), token);
        let home = DevHome::open(place.path()).unwrap();
        let client = home.client_token().unwrap();
        assert_ne!(client, token);
        home.write_console("http://127.0.0.1:1", &token).unwrap();
        let header = fs::read_to_string(place.path().join(CLIENT_HEADER)).unwrap();
        assert_eq!(header, format!("Authorization: Bearer {client}\n"));
        for name in ["operator.token", "client.token", CLIENT_HEADER, CONSOLE] {
            let mode = fs::metadata(place.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn what_runs_reads_back_and_can_be_retracted() {
        let place = tempfile::tempdir().unwrap();
        let home = DevHome::open(place.path()).unwrap();
        home.publish(&state()).unwrap();
        assert_eq!(home.last_state(), Some(state()));
        home.retract();
        assert_eq!(home.last_state(), None);
    }
}
