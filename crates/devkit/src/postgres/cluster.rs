//! Data directories: initialised once, copied for tests.
//!
//! Owns `initdb` and the cache of an initialised directory, from which a test copies its own in a tenth of the time.
//! Keeps: a directory in the cache is complete, since it is put there by a rename.

use std::{
    env, fs,
    fs::{DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;
use sha2::{Digest as _, Sha256};

use super::{
    binaries::Binaries,
    options::Options,
    owner::{self, ServerUser},
    password,
};

/// The file in a data directory that holds its superuser's password. It lives and dies with the data.
const PASSWORD: &str = "lastword.password";

/// Makes the wanted directory a data directory that `owner` can use, and returns where it really is:
/// under `/var/lib` when `owner` cannot reach the wanted place (a directory below `/root`, usually).
pub(super) fn prepare(options: &Options, owner: Option<&ServerUser>) -> anyhow::Result<PathBuf> {
    let wanted = std::path::absolute(&options.data)?;
    let data = match owner {
        Some(owner) if !owner.reaches(&wanted) => stand_in(&wanted),
        _ => wanted,
    };
    if data.join("PG_VERSION").is_file() {
        require_same_major(&data, &options.binaries)?;
        return Ok(fs::canonicalize(data)?);
    }
    fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let data = fs::canonicalize(data)?;
    let mut entries = fs::read_dir(&data).with_context(|| format!("cannot read {}", data.display()))?;
    if entries.next().is_some() {
        bail!("{} is neither empty nor a Postgres data directory", data.display());
    }
    // Made beside its place and moved there whole: an interrupted start leaves no half of one.
    let unfinished = data.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    let more: &[&str] = if options.durable { &[] } else { &["--no-sync"] };
    initdb_with_password(&unfinished, &options.binaries, owner, more)?;
    fs::rename(&unfinished, &data)?;
    Ok(data)
}

/// The superuser's password; `None` in a directory that an older release made for throw-away data.
pub(super) fn password(data: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(data.join(PASSWORD)) {
        Ok(password) => Ok(Some(password.trim().to_owned())),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why).with_context(|| format!("cannot read the password in {}", data.display())),
    }
}

/// With a password, since every user of this machine can reach a port on loopback, and a superuser of
/// a database can run programs as the user whose server it is.
fn initdb_with_password(
    data: &Path,
    binaries: &Binaries,
    owner: Option<&ServerUser>,
    more: &[&str],
) -> anyhow::Result<()> {
    let password = password::random();
    // Beside the directory: `initdb` wants that one empty.
    let file = data.with_extension("password");
    let _ = fs::remove_file(&file);
    private_file_of(owner, &file, &password::verifier(&password))?;
    let from = format!("--pwfile={}", file.display());
    let made = initdb(data, binaries, owner, &[&["--auth=scram-sha-256", &from], more].concat());
    fs::remove_file(&file)?;
    made?;
    private_file_of(owner, &data.join(PASSWORD), &password)
}

fn private_file_of(owner: Option<&ServerUser>, path: &Path, text: &str) -> anyhow::Result<()> {
    private_file(path)?.write_all(text.as_bytes())?;
    owner.map_or(Ok(()), |owner| owner.take(path))
}

/// A data directory of a test's own: a copy of the cached one, in the system's temporary directory.
pub(super) fn scratch(binaries: &Binaries) -> anyhow::Result<PathBuf> {
    let owner = ServerUser::of_a_server(Path::new(""))?;
    let owner = owner.as_ref();
    let template = template(binaries, owner)?;
    let name = format!("lastword-test-{}-{:08x}", std::process::id(), rand::random::<u32>());
    let data = env::temp_dir().join(name);
    if let Err(why) = copy(&template, &data, owner) {
        let _ = fs::remove_dir_all(&data);
        return Err(why.context("cannot copy the cached data directory"));
    }
    Ok(fs::canonicalize(data)?)
}

/// The cached directory for this version and user, made now if it is not there. One process makes
/// it while the others wait.
fn template(binaries: &Binaries, owner: Option<&ServerUser>) -> anyhow::Result<PathBuf> {
    let uid = owner.map_or_else(|| Uid::effective().as_raw(), |owner| owner.uid);
    let cache = cache_dir()?;
    // Named for what is in it: older releases keep directories without a password there.
    let template = cache.join(format!("postgres-{}-scram-{uid}", binaries.version()));
    if template.is_dir() {
        return Ok(template);
    }
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    if template.is_dir() {
        return Ok(template);
    }
    let unfinished = template.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir(&unfinished)?;
    // Written to disk in full: the cache outlives a power cut that comes after the rename. Its password is
    // that of every test of this user, and nobody else can read it.
    initdb_with_password(&unfinished, binaries, owner, &[])?;
    fs::rename(&unfinished, &template)?;
    Ok(template)
}

fn cache_dir() -> anyhow::Result<PathBuf> {
    let below = |name: &str| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    // Root's home is closed to the user who runs `initdb`.
    let usual = if Uid::effective().is_root() {
        Some(PathBuf::from("/var/cache"))
    } else {
        below("XDG_CACHE_HOME").or_else(|| below("HOME").map(|home| home.join(".cache")))
    };
    let own = format!("lastword-{}", Uid::effective());
    let mut places = usual.into_iter().map(|dir| dir.join("lastword")).chain([env::temp_dir().join(own)]);
    places
        .find(|dir| fs::create_dir_all(dir).is_ok() && File::create(dir.join("lock")).is_ok())
        .context("no directory for a cache: neither the user's own nor the temporary one can be written")
}

fn initdb(data: &Path, binaries: &Binaries, owner: Option<&ServerUser>, more: &[&str]) -> anyhow::Result<()> {
    fs::set_permissions(data, fs::Permissions::from_mode(0o700))?;
    if let Some(owner) = owner {
        owner.take(data)?;
    }
    let mut command = owner::command(&binaries.initdb(), owner);
    command.current_dir(data).arg("-D").arg(data);
    command.args(["--username=postgres", "--encoding=UTF8", "--locale=C", "--no-instructions"]);
    command.args(more).stdin(Stdio::null());
    let said = command.output().with_context(|| format!("cannot run {}", binaries.initdb().display()))?;
    if !said.status.success() {
        bail!("initdb of {} failed: {}", data.display(), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, owner: Option<&ServerUser>) -> anyhow::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, owner)?;
            continue;
        }
        io::copy(&mut File::open(entry.path())?, &mut private_file(&target)?)?;
        if let Some(owner) = owner {
            owner.take(&target)?;
        }
    }
    owner.map_or(Ok(()), |owner| owner.take(to))
}

fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn require_same_major(data: &Path, binaries: &Binaries) -> anyhow::Result<()> {
    let made_by = fs::read_to_string(data.join("PG_VERSION"))?;
    let made_by = made_by.trim();
    if binaries.version().split(|c: char| !c.is_ascii_digit()).next() != Some(made_by) {
        bail!(
            "{} was made by PostgreSQL {made_by}, and this is {}: name the older one with --postgres-bin, \
             or move the directory away",
            data.display(),
            binaries.version(),
        );
    }
    Ok(())
}

/// One place for one wanted place, so that the next start finds the same data.
fn stand_in(wanted: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(wanted.as_os_str().as_bytes());
    let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("/var/lib/lastword-{hash}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_out_of_reach_gets_the_same_stand_in_every_time() {
        let stood_in = stand_in(Path::new("/root/project/.lastword/postgres"));
        assert_eq!(stood_in, stand_in(Path::new("/root/project/.lastword/postgres")));
        assert_ne!(stood_in, stand_in(Path::new("/root/other/.lastword/postgres")));
        assert!(stood_in.to_string_lossy().starts_with("/var/lib/lastword-"));
    }
}
