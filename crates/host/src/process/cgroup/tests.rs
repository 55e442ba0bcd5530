use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

use super::{
    group::{CgroupVersion, Group},
    site,
};
use crate::process::{birth, guard_protocol::Plan};

/// A directory with the files that a group of version 2 has.
fn group(dir: &Path, controllers: &str, divided: &str, members: &str) {
    fs::create_dir_all(dir).unwrap();
    let files = [
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", divided),
        ("cgroup.procs", members),
        ("cgroup.type", "domain\n"),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// Finds the place of a process in the group `path`, of which everything below `root` is mounted at `point`.
fn found(path: &str, root: &str, point: &Path) -> Result<(u8, String, bool), String> {
    let mounts = format!(
        "22 1 0:21 / /proc rw - proc proc rw\n31 23 0:28 {root} {} rw,nosuid shared:5 - cgroup2 cgroup2 rw\n",
        point.display()
    );
    let place = site::find_in(&format!("1:name=systemd:/x\n0::{path}\n"), &mounts)?;
    let below = place.dir.strip_prefix(point).unwrap().display().to_string();
    Ok((place.version.number(), below, place.must_divide()))
}

#[test]
fn a_group_is_found_below_its_mount_whatever_part_of_it_is_mounted() {
    let dir = TempDir::new().unwrap();
    let mount = dir.path().join("with blank");
    group(&mount.join("mine"), "", "", "");
    let escaped = mount.display().to_string().replace(' ', "\\040");
    let at = |root: &str, groups: &str| {
        let mounts = format!("35 31 0:32 {root} {escaped} rw - cgroup cgroup rw,memory\n");
        site::find_in(groups, &mounts).map(|place| (place.version, place.dir))
    };
    let whole = Ok((CgroupVersion::V1, mount.join("mine")));
    assert_eq!(at("/", "5:cpu:/a\n4:hugetlb,memory:/mine\n0::/b\n"), whole);
    assert_eq!(at("/docker/x", "4:memory:/docker/x/mine\n0::/\n"), whole, "as in a container");
    for (root, groups) in [("/", "4:memory:/mine/../..\n"), ("/docker/y", "4:memory:/docker/x/mine\n")] {
        assert!(at(root, groups).unwrap_err().contains("not mounted"));
    }
    assert!(at("/", "0::/mine\n").unwrap_err().contains("not mounted"), "that mount is of version 1");
    assert!(at("/", "5:cpu:/a\n").is_err());
}

#[test]
fn a_group_of_version_2_is_divided_only_where_it_is_ours_alone() {
    let dir = TempDir::new().unwrap();
    let (root, me) = (dir.path(), format!("{}\n", std::process::id()));
    let refused = |why: &str| {
        let told = found("/", "/", root).unwrap_err();
        assert!(told.contains(why), "{told}");
    };
    group(root, "cpu memory\n", "", &me);
    assert_eq!(found("/", "/", root), Ok((2, String::new(), true)));
    group(root, "cpu pids\n", "", &me);
    refused("not delegated");
    group(root, "cpu memory\n", "", &format!("1\n{me}"));
    refused("processes of others");
    group(root, "cpu memory\n", "", &format!("0\n{me}"));
    refused("processes of others");
    group(root, "cpu memory\n", "", &me);
    fs::create_dir(root.join("theirs")).unwrap();
    refused("groups of others");
    fs::rename(root.join("theirs"), root.join("lastword-7-9")).unwrap();
    assert_eq!(found("/", "/", root), Ok((2, String::new(), true)), "left by one of ours");
    fs::write(root.join("cgroup.type"), "threaded\n").unwrap();
    refused("of threads");
    fs::remove_file(root.join("cgroup.type")).unwrap();
    refused("root of all groups");
    group(root, "cpu memory\n", "cpu memory\n", &me);
    assert_eq!(found("/", "/", root), Ok((2, String::new(), false)), "it is divided already");
}

#[test]
fn a_process_in_the_leaf_makes_its_groups_beside_it() {
    let dir = TempDir::new().unwrap();
    let leaf = dir.path().join("unit/lastword-replica");
    group(&dir.path().join("unit"), "memory\n", "memory\n", "");
    group(&leaf, "memory\n", "", "1\n2\n");
    assert_eq!(found("/unit/lastword-replica", "/", dir.path()), Ok((2, "unit".to_owned(), false)));
    group(&dir.path().join("unit"), "memory\n", "", "");
    assert!(found("/unit/lastword-replica", "/", dir.path()).is_err(), "a name alone is no proof");
}

#[test]
fn a_sweep_takes_what_a_dead_replica_left_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    group(dir.path(), "memory\n", "memory\n", "");
    let mine = site::home_name(std::process::id()).unwrap();
    // This process's number with another start: somebody who had the number before.
    let former = format!("{}0", mine);
    for name in [&mine, &former, "lastword-replica", "lastword-x", "theirs-1-2"] {
        fs::create_dir_all(dir.path().join(name).join("0")).unwrap();
    }
    let mounts = format!("31 23 0:28 / {} rw - cgroup2 cgroup2 rw\n", dir.path().display());
    site::find_in("0::/\n", &mounts).unwrap().sweep();
    let is_there = |name: &str| dir.path().join(name).join("0").exists();
    assert!(!dir.path().join(&former).exists());
    assert!([&mine, "lastword-replica", "lastword-x", "theirs-1-2"].into_iter().all(is_there));
}

#[test]
fn a_group_that_cannot_be_joined_keeps_no_agent_from_its_start() {
    let dir = TempDir::new().unwrap();
    let start = || {
        let plan = Plan {
            command: vec!["true".to_owned()],
            env: BTreeMap::new(),
            cwd: std::env::current_dir().unwrap(),
            memory_bytes: 1 << 30,
            processes_max: 1,
            group: Some(Group::at(dir.path().to_owned(), CgroupVersion::V2)),
            file_bytes: 1 << 20,
            user: None,
            stop_grace_ms: 0,
            silence_max_ms: 0,
        };
        let mut born = birth::spawn(&plan).map_err(|refusal| refusal.detail).unwrap();
        assert!(born.agent.wait().unwrap().success());
        born.unbound
    };
    assert!(start().unwrap().contains("No such file"), "it is gone");
    let entry = dir.path().join("cgroup.procs");
    symlink("/dev/full", &entry).unwrap();
    assert!(start().unwrap().contains("No space left"), "it takes nobody");
    fs::remove_file(&entry).unwrap();
    fs::write(&entry, "").unwrap();
    assert_eq!(start(), None);
    assert_eq!(fs::read_to_string(&entry).unwrap(), "0");
}
