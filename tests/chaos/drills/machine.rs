//! Faults of the machine: wrong clocks, a full disk, exhausted memory.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lastword_devkit::postgres::{Binaries, Options, Postgres, StopMode};
use rand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    Row,
    database::{last_word_across, serves_again},
    round::Round,
    spread,
};
use crate::{
    checker::Allowances,
    load::Mix,
    plan::{Ground, Plan},
    scene::{Ballast, Scene, Stage},
    support::is_alive,
};

/// Places of the library that shifts a process' clock: that of `.ci/faketime`, and Debian's.
const FAKE_TIME: [&str; 3] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/faketime/libfaketime.so.1"),
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
const CGROUPS: &str = "/sys/fs/cgroup/memory";

/// One replica an hour ahead, one an hour behind, one right.
pub async fn clocks(stage: Stage) -> Row {
    let Some(library) = FAKE_TIME.into_iter().find(|library| Path::new(library).exists()) else {
        return Row::not_run("no libfaketime: `.ci/faketime` fetches one".to_owned());
    };
    let mut plan = Plan::slots(3);
    for (slot, shift) in [(0, "+3600"), (1, "-3600")] {
        for (name, value) in
            [("LD_PRELOAD", library), ("FAKETIME", shift), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
        {
            plan.slot_env.push((slot, name.to_owned(), value.to_owned()));
        }
    }
    let scene = Scene::open(&stage, plan, Mix::LIGHT).await;
    scene.fleet.broke("clocks_shifted", None, None, Vec::new());
    for _ in 0..stage.count {
        last_word_across(&scene).await;
    }
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.measures.get("terminal").cloned().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!("terminal seen {}; false deaths: {}", spread(&told), findings.unexpected),
        is_met: findings.unexpected == 0 && told.len() >= stage.count,
        is_run: true,
        findings,
    }
}

/// A small file system in memory; gone when dropped.
struct Mount(PathBuf);

impl Mount {
    fn make(megabytes: usize) -> Result<Mount, String> {
        let dir = std::env::temp_dir().join(format!("lastword-disk-{:08x}", rand::random::<u32>()));
        fs::create_dir(&dir).map_err(|why| why.to_string())?;
        let size = format!("size={megabytes}m,mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).output();
        match mounted {
            Ok(done) if done.status.success() => Ok(Mount(dir)),
            other => {
                let _ = fs::remove_dir(&dir);
                Err(format!("no small file system: {other:?}"))
            }
        }
    }

    /// Takes every byte that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        let block = vec![0u8; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}

/// Postgres' disk fills up, stays full for a while, and is freed.
pub async fn disk_full(stage: Stage) -> Row {
    let mount = match Mount::make(192) {
        Ok(mount) => mount,
        Err(why) => return Row::not_run(why),
    };
    let options = Options {
        settings: vec![
            ("max_wal_size".to_owned(), "64MB".to_owned()),
            ("min_wal_size".to_owned(), "32MB".to_owned()),
        ],
        ..Options::new(mount.0.join("data"), Binaries::find(None).unwrap())
    };
    let postgres = tokio::task::block_in_place(|| Postgres::start(options)).unwrap();
    let scene = Scene::over(&stage, Ground::Own(Box::new(postgres)), Plan::slots(3), Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    for _ in 0..stage.count {
        ballast.fill(&scene, 3).await;
        let id = scene.fleet.broke("disk_full", None, None, Vec::new());
        let filler = mount.fill();
        let full = scene.nemesis().random_range(3_000..10_000);
        sleep(Duration::from_millis(full)).await;
        fs::remove_file(filler).unwrap();
        // A server that could not write its log has ended itself.
        scene.fleet.with_postgres(|postgres| {
            if !postgres.is_running() {
                postgres.restart(StopMode::Immediate).unwrap();
            }
        });
        serves_again(&scene, Instant::now()).await;
        scene.fleet.healed(id, "disk_full");
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    Row {
        count: stage.count,
        figure: format!(
            "accepted without a durable row: {}; false deaths: {}",
            findings.lost, findings.unexpected
        ),
        is_met: findings.lost == 0 && findings.unexpected == 0,
        is_run: true,
        findings,
    }
}

/// A replica uses up its memory and the kernel kills it.
pub async fn out_of_memory(stage: Stage) -> Row {
    if !Path::new(CGROUPS).join("memory.limit_in_bytes").exists() {
        return Row::not_run(format!("no memory control groups at {CGROUPS}"));
    }
    let scene = Scene::open(&stage, Plan::slots(3), Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    let mut killed = 0;
    let mut left = stage.count;
    while let Some(round) = Round::next(&scene, &mut ballast, &mut left, 1, 6).await {
        let slot = round.slots[0];
        let (pid, turns) = (scene.fleet.pid(slot), round.turns_at(&scene, slot));
        scene.fleet.broke("oom_replica", Some(slot), Some(pid), turns);
        let group = Group::make(pid);
        let until = Instant::now() + Duration::from_secs(20);
        while is_alive(pid) && Instant::now() < until {
            group.tighten();
            sleep(Duration::from_millis(5)).await;
        }
        killed += usize::from(!is_alive(pid));
        scene.fleet.bury(slot);
        drop(group);
        scene.fleet.revive(slot).await;
    }
    sleep(Duration::from_secs(3)).await;
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_first.get("oom_replica").cloned().unwrap_or_default();
    Row {
        count: killed,
        figure: format!("told {}; accepted without a durable row: {}", spread(&told), findings.lost),
        is_met: killed == stage.count && findings.lost == 0,
        is_run: true,
        findings,
    }
}

/// A control group around one process; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn make(pid: i32) -> Group {
        let dir = Path::new(CGROUPS).join(format!("lastword-{:08x}", rand::random::<u32>()));
        fs::create_dir(&dir).unwrap();
        // What it has used so far moves along, or a limit would find nothing to take.
        let _ = fs::write(dir.join("memory.move_charge_at_immigrate"), "3");
        fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        Group(dir)
    }

    /// Allows no more than what is used now; a little less each time.
    fn tighten(&self) {
        let used = fs::read_to_string(self.0.join("memory.usage_in_bytes")).unwrap_or_default();
        let used: u64 = used.trim().parse().unwrap_or(1 << 20);
        let _ =
            fs::write(self.0.join("memory.limit_in_bytes"), (used.saturating_sub(256 * 1024)).to_string());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
