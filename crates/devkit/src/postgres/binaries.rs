//! Finds the programs of Postgres on this machine.
//!
//! Searches, in this order, a named directory, `LASTWORD_POSTGRES_BIN`, the `PATH`, Debian's directories (newest
//! first), and last, with the feature `download-postgres`, downloads them. Refuses a version older than
//! [`OLDEST_MAJOR`].

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The oldest major version whose behaviour the SQL relies on.
const OLDEST_MAJOR: u32 = 14;
/// Names a directory of programs, as an environment variable.
const VARIABLE: &str = "LASTWORD_POSTGRES_BIN";
/// Debian's own place: one directory a major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A directory with `postgres` and `initdb`, and their version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    version: String,
}

impl Binaries {
    /// Finds the programs; `configured` is a directory the user has named.
    ///
    /// # Errors
    /// A named directory does not hold them, or there are none anywhere; the message says what to
    /// install.
    pub fn find(configured: Option<&Path>) -> anyhow::Result<Binaries> {
        if let Some(dir) = configured {
            return Binaries::open(dir);
        }
        if let Some(dir) = env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
            return Binaries::open(Path::new(&dir)).with_context(|| format!("{VARIABLE} is set"));
        }
        let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
        let candidates = on_path.unwrap_or_default().into_iter().chain(debian_dirs());
        if let Some(found) = candidates.filter_map(|dir| Binaries::open(&dir).ok()).next() {
            return Ok(found);
        }
        download().context(
            "no PostgreSQL found: install it (Debian: apt-get install postgresql), \
             or name the directory of `postgres` and `initdb` with --postgres-bin",
        )
    }

    /// The version, such as `15.14`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The server program.
    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    /// The program that makes a data directory.
    pub fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    /// Whether the server can load this library, which may be packaged apart.
    pub fn has_library(&self, name: &str) -> bool {
        // The program may be a link out of the directory that it was installed in.
        let Ok(program) = fs::canonicalize(self.postgres()) else { return false };
        let Some(home) = program.parent().and_then(Path::parent) else { return false };
        let file = format!("{name}.so");
        ["lib", "lib/postgresql"].iter().any(|lib| home.join(lib).join(&file).is_file())
    }

    /// Takes the programs from `dir`.
    fn open(dir: &Path) -> anyhow::Result<Binaries> {
        for program in ["postgres", "initdb"] {
            if !dir.join(program).is_file() {
                bail!("{} has no `{program}`", dir.display());
            }
        }
        let said = Command::new(dir.join("postgres")).arg("--version").output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = version_in(&said).with_context(|| format!("not a version of Postgres: `{said}`"))?;
        if major(version).is_none_or(|major| major < OLDEST_MAJOR) {
            bail!("{} is PostgreSQL {version}; {OLDEST_MAJOR} or newer is needed", dir.display());
        }
        Ok(Binaries { dir: dir.to_owned(), version: version.to_owned() })
    }
}

fn debian_dirs() -> Vec<PathBuf> {
    let entries = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, dir)| dir).collect()
}

/// The version in what `postgres --version` says: `postgres (PostgreSQL) 15.14 (Debian …)`.
fn version_in(said: &str) -> Option<&str> {
    said.split_once("(PostgreSQL)")?.1.split_whitespace().next()
}

/// The major version; a release candidate reads `19rc1`.
fn major(version: &str) -> Option<u32> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(feature = "download-postgres")]
fn download() -> anyhow::Result<Binaries> {
    Binaries::open(&super::download::fetch()?)
}

#[cfg(not(feature = "download-postgres"))]
fn download() -> anyhow::Result<Binaries> {
    bail!("this build cannot download one (feature `download-postgres` is off)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_and_without_a_packagers_suffix() {
        for (said, version, number) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", "15.14", 15),
            ("postgres (PostgreSQL) 18.0\n", "18.0", 18),
            ("postgres (PostgreSQL) 19rc1\n", "19rc1", 19),
        ] {
            assert_eq!(version_in(said), Some(version));
            assert_eq!(major(version), Some(number));
        }
        assert_eq!(version_in("bash 5"), None);
    }

    #[test]
    fn a_named_directory_without_the_programs_is_refused_by_name() {
        let why = Binaries::find(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(why.contains("/nowhere has no `postgres`"), "{why}");
    }
}
