//! The user that a private Postgres runs as.
//!
//! Postgres refuses to run as root. So under root it runs as the owner of the data directory, if that is another user;
//! else as `postgres`, or as `nobody` if that user does not exist. Any other user runs Postgres as itself.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use nix::unistd::{Uid, User};

/// An unprivileged user who stands in for root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl ServerUser {
    /// Whom a server over `data` must run as; `None` means as ourselves.
    pub(super) fn of_a_server(data: &Path) -> anyhow::Result<Option<ServerUser>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        // Made earlier, perhaps by a user who was not root then: nobody else may serve it.
        if let Ok(made) = fs::metadata(data.join("PG_VERSION"))
            && made.uid() != 0
        {
            return Ok(Some(ServerUser { uid: made.uid(), gid: made.gid() }));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Some(ServerUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        anyhow::bail!("Postgres does not run as root, and there is neither a user `postgres` nor `nobody`")
    }

    /// Gives this user a file or directory.
    pub(super) fn take(&self, path: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to the user of Postgres", path.display()))
    }

    /// Whether this user can walk down to `path`; what does not exist yet is no obstacle.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        path.ancestors().skip(1).filter_map(|parent| fs::metadata(parent).ok()).all(|parent| {
            let search = match (parent.uid() == self.uid, parent.gid() == self.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            parent.mode() & search != 0
        })
    }
}

/// A command that runs as `owner`, without any of our environment that could steer a Postgres.
pub(super) fn command(program: &Path, owner: Option<&ServerUser>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for kept in ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ"].map(OsStr::new) {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    command
}
