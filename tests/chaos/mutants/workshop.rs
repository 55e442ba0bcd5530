//! A copy of the source tree in which mutants are built.
//!
//! Owns `target/mutants`. A file is written only if it differs, so that a build after another mutant's compiles this
//! crate only.

use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest, Sha256};

use super::patches::{Edit, Mutant};

/// What of the repository is no source.
const LEFT_OUT: [&str; 3] = ["target", ".git", ".lastword"];
/// Where the recorded descriptions of checked queries are.
const RECORDS: &str = ".sqlx";

/// The copy and its builds.
pub struct Workshop {
    root: PathBuf,
    source: PathBuf,
    build: PathBuf,
}

impl Workshop {
    /// Below this repository's `target`.
    pub fn open() -> Workshop {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let bench = root.join("target/mutants");
        Workshop { source: bench.join("src"), build: bench.join("build"), root }
    }

    /// Makes the mutant and builds it; where its program is, until the next one is built.
    ///
    /// # Errors
    /// An edit does not fit, or what it makes does not compile.
    pub fn build(&self, mutant: &Mutant) -> anyhow::Result<PathBuf> {
        self.restore()?;
        for edit in mutant.edits {
            self.apply(edit).with_context(|| mutant.name)?;
        }
        self.compile(mutant.name)
    }

    fn compile(&self, name: &str) -> anyhow::Result<PathBuf> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--locked", "--bin", "lastword"]);
        command.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.build);
        let done = command.output().context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{name} does not compile:\n{said}");
        Ok(self.build.join("debug/lastword"))
    }

    /// Builds the next release; where its program is, for good.
    ///
    /// # Errors
    /// An edit does not fit, or what it makes does not compile.
    #[allow(dead_code, reason = "for the drills alone")]
    pub fn build_next(&self, next: &Mutant, migration: (&str, &str)) -> anyhow::Result<PathBuf> {
        let (file, text) = migration;
        self.restore()?;
        for edit in next.edits {
            self.apply(edit).with_context(|| next.name)?;
        }
        write(&self.source.join(file), text.as_bytes())?;
        let built = self.compile(next.name)?;
        let kept = self.build.join(next.name);
        fs::copy(built, &kept)?;
        Ok(kept)
    }

    /// Makes the copy what the repository is.
    fn restore(&self) -> anyhow::Result<()> {
        let mut wanted = HashSet::new();
        for path in files(&self.root, &LEFT_OUT)? {
            let below = path.strip_prefix(&self.root)?.to_owned();
            write(&self.source.join(&below), &fs::read(&path)?)?;
            wanted.insert(below);
        }
        for path in files(&self.source, &[])? {
            if !wanted.contains(path.strip_prefix(&self.source)?) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn apply(&self, edit: &Edit) -> anyhow::Result<()> {
        let path = self.source.join(edit.file);
        let text = fs::read_to_string(&path)?;
        let places = text.matches(edit.find).count();
        ensure!(places == 1, "{} places in {} for: {}", places, edit.file, edit.find);
        write(&path, text.replace(edit.find, edit.replace).as_bytes())?;
        self.apply_to_records(edit)
    }

    /// A checked query that is changed needs a record under its new text. What it takes and gives is
    /// the same.
    fn apply_to_records(&self, edit: &Edit) -> anyhow::Result<()> {
        for path in files(&self.source.join(RECORDS), &[])? {
            let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
            let Some(query) = record["query"].as_str().filter(|query| query.contains(edit.find)) else {
                continue;
            };
            let query = query.replace(edit.find, edit.replace);
            let hash: String =
                Sha256::digest(query.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            record["query"] = query.into();
            record["hash"] = hash.clone().into();
            let path = self.source.join(RECORDS).join(format!("query-{hash}.json"));
            write(&path, &serde_json::to_vec_pretty(&record)?)?;
        }
        Ok(())
    }
}

/// Writes what is not there yet.
fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let Some(folder) = path.parent() else { bail!("{} is no file", path.display()) };
    fs::create_dir_all(folder)?;
    fs::write(path, content).with_context(|| path.display().to_string())
}

/// Every file below `root`, but for these entries of it.
fn files(root: &Path, left_out: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            let is_left_out = left_out.iter().any(|name| path == root.join(name));
            match () {
                () if is_left_out || path.is_symlink() => {}
                () if path.is_dir() => folders.push(path),
                () => found.push(path),
            }
        }
    }
    Ok(found)
}
