//! Workspaces: the directories that workers work in, and who may enter them.
//!
//! Owns their making. Each is for one user alone: the gateway's, or the workers' own, which must then be able to
//! pass through the directories above.

use std::{
    fs::{self, DirBuilder, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

use super::user::User;
use lastword_words::id::ConversationId;

/// For its owner alone, and for its owner with a way through for others.
const CLOSED: u32 = 0o700;
const PASSABLE: u32 = 0o711;

/// Makes the workspace where there is none, and returns it as an absolute path.
///
/// # Errors
/// Why it cannot be, with its path.
pub(super) fn prepare(workspace: &Path, user: Option<User>) -> Result<PathBuf, String> {
    let failed = |why: io::Error| format!("workspace {}: {why}", workspace.display());
    let workspace = std::path::absolute(workspace).map_err(failed)?;
    let Some(user) = user else {
        make(&workspace, CLOSED).map_err(failed)?;
        return Ok(workspace);
    };
    if let Some(above) = workspace.parent() {
        make(above, PASSABLE).map_err(failed)?;
        passable(above, user)?;
    }
    make(&workspace, CLOSED).map_err(failed)?;
    give(&workspace, user).map_err(failed)?;
    Ok(workspace)
}

/// The conversations that have a workspace below `dir`, whatever else is there.
///
/// # Errors
/// The directory cannot be read. One that is not there is empty.
pub fn conversations(dir: &Path) -> io::Result<Vec<ConversationId>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// Opens a way to the workspaces below `dirs` for `user`: makes them, or lets others pass through those that are
/// this process's own.
///
/// # Errors
/// Which directory the user cannot pass, and what to do.
pub fn open(dirs: &[PathBuf], user: User) -> Result<(), String> {
    for dir in dirs {
        let failed = |why: io::Error| format!("{}: {why}", dir.display());
        let dir = std::path::absolute(dir).map_err(failed)?;
        make(&dir, PASSABLE).map_err(failed)?;
        let found = fs::metadata(&dir).map_err(failed)?;
        if found.uid() == Uid::effective().as_raw() {
            let mode = found.permissions().mode() | (PASSABLE & 0o111);
            fs::set_permissions(&dir, Permissions::from_mode(mode)).map_err(failed)?;
        }
        passable(&dir, user)?;
    }
    Ok(())
}

fn make(dir: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// Whether `user` may pass through `dir` and everything above it.
fn passable(dir: &Path, user: User) -> Result<(), String> {
    for dir in dir.ancestors() {
        let found = fs::metadata(dir).map_err(|why| format!("{}: {why}", dir.display()))?;
        if !may_pass(&found, user) {
            return Err(format!(
                "the workers' user {user} cannot pass through {}: `chmod o+x` it, or choose another data_dir",
                dir.display()
            ));
        }
    }
    Ok(())
}

fn may_pass(dir: &Metadata, user: User) -> bool {
    let mode = dir.permissions().mode();
    let bit = match dir {
        dir if dir.uid() == user.uid => 0o100,
        dir if dir.gid() == user.gid => 0o010,
        _ => 0o001,
    };
    mode & bit != 0
}

/// Gives the workspace to `user`. One that the gateway's own user worked in so far goes with all that is in it.
fn give(workspace: &Path, user: User) -> io::Result<()> {
    let owner = fs::symlink_metadata(workspace)?.uid();
    if owner == user.uid {
        return Ok(());
    }
    if owner == Uid::effective().as_raw() {
        let mut unvisited = vec![workspace.to_owned()];
        while let Some(dir) = unvisited.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                // Of a link, the link itself.
                lchown(entry.path(), Some(user.uid), Some(user.gid))?;
                if entry.file_type()?.is_dir() {
                    unvisited.push(entry.path());
                }
            }
        }
    }
    // Last: one that was given halfway is given again.
    lchown(workspace, Some(user.uid), Some(user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: User = User { uid: 4_000_001, gid: 4_000_002 };

    #[test]
    fn the_way_to_a_workspace_is_opened_and_a_closed_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        make(&closed, CLOSED).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(PASSABLE)).unwrap();
        let below = closed.join("data");
        let why = open(std::slice::from_ref(&below), USER).unwrap_err();
        assert!(why.contains(&format!("cannot pass through {}:", closed.display())), "{why}");
        open(&[closed.clone(), below.clone()], USER).unwrap();
        assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o777, PASSABLE);
        assert_eq!(fs::metadata(&below).unwrap().mode() & 0o777, PASSABLE);
    }

    #[test]
    fn a_workspace_of_before_goes_to_the_workers_user_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(PASSABLE)).unwrap();
        let workspace = dir.path().join("workspace");
        let outside = dir.path().join("outside");
        prepare(&workspace, None).unwrap();
        fs::create_dir(workspace.join("sub")).unwrap();
        fs::write(workspace.join("sub/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, workspace.join("link")).unwrap();
        let given = prepare(&workspace, Some(USER));
        if !Uid::effective().is_root() {
            assert!(given.unwrap_err().contains("not permitted"));
            return;
        }
        given.unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        for path in ["", "sub", "sub/file", "link"] {
            assert_eq!(owner(&workspace.join(path)), (USER.uid, USER.gid), "{path}");
        }
        assert_eq!(owner(&outside).0, 0, "a link was followed");
    }
}
