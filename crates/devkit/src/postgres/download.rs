//! Postgres for a machine that has none: the programs of a release build, downloaded once.
//!
//! Owns one directory of downloads, with a subdirectory for each version. A version that is there is used without
//! network access.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use nix::unistd::Uid;
use postgresql_embedded::{PostgreSQL, Settings, V18};

/// Fetches the programs, or finds those fetched before; the directory that they are in.
pub(super) fn fetch() -> anyhow::Result<PathBuf> {
    let home = downloads()?;
    eprintln!("lastword: no PostgreSQL on this machine; fetching one into {}", home.display());
    // A thread of its own, since the caller may be inside a runtime, which must not start another.
    let fetched = thread::Builder::new().name("download".to_owned()).spawn(move || install(&home))?;
    let dir = fetched.join().map_err(|_| anyhow::anyhow!("the download panicked"))??;
    Ok(dir.join("bin"))
}

fn install(home: &Path) -> anyhow::Result<PathBuf> {
    // `setup` would also run `initdb`, as whoever we are; a data directory that looks initialised
    // keeps it from that. Ours is made later, by the user it belongs to.
    let decoy = home.join("not-a-cluster");
    fs::create_dir_all(&decoy)?;
    fs::write(decoy.join("postgresql.conf"), "")?;
    let settings = Settings {
        version: V18.clone(),
        installation_dir: home.to_owned(),
        password_file: decoy.join("password"),
        data_dir: decoy,
        temporary: false,
        ..Settings::new()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut postgres = PostgreSQL::new(settings);
    runtime.block_on(postgres.setup()).context("the download failed")?;
    let installed = postgres.settings().installation_dir.clone();
    // It is unpacked into a directory that only we may enter; the server may run as someone else.
    fs::set_permissions(&installed, fs::Permissions::from_mode(0o755))?;
    Ok(installed)
}

/// Root's home is closed to the user the server runs as, so root's downloads go elsewhere.
fn downloads() -> anyhow::Result<PathBuf> {
    let below = |name: &str| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = if Uid::effective().is_root() {
        PathBuf::from("/var/lib/lastword")
    } else {
        below("XDG_DATA_HOME")
            .or_else(|| below("HOME").map(|home| home.join(".local/share")))
            .context("neither XDG_DATA_HOME nor HOME is set")?
            .join("lastword")
    };
    let dir = dir.join("postgresql");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
