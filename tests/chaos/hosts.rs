//! Hosts of remote workers, and a proxy of their own in front of each replica.
//!
//! Owns the `lastword work` processes, in slots that outlive them, and the network between them and the replicas. A
//! proxy outlives the replicas behind it, as a Service outlives pods, and each replica advertises its proxy's address;
//! clients bypass the proxies, so that faults there do not affect clients.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastword_devkit::child;
use nix::sys::signal::Signal;

use crate::{
    plan::Plan,
    proxy::Proxy,
    support::{children_of, program},
};

/// The token that lets any worker in.
const TOKEN: &str = "worker-token-of-a-drill";
/// Turns that one host runs at once.
const ROOM: u32 = 16;
/// How long a host that was told to leave lets its turns go on, and may take to leave.
const DRAIN: &str = "3s";
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// The hosts of one run.
pub struct Hosts {
    doors: Vec<Proxy>,
    slots: Vec<Mutex<Child>>,
    home: PathBuf,
    receipts: PathBuf,
    born: AtomicU64,
}

/// Doors for the replicas of a plan, which lead nowhere yet, and what the replicas are told of them.
pub fn doors(mut plan: Plan) -> (Vec<Proxy>, Plan) {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let doors: Vec<Proxy> = (0..plan.slots).map(|_| Proxy::start(nowhere).unwrap()).collect();
    for (slot, door) in doors.iter().enumerate() {
        plan.slot_env.push((slot, "LASTWORD_ADVERTISED_URL".to_owned(), url_of(door)));
    }
    (doors, plan.env("LASTWORD_WORKER_TOKENS", TOKEN))
}

fn url_of(door: &Proxy) -> String {
    format!("http://{}", door.address())
}

impl Hosts {
    /// Starts so many, that run the demo agent's turns and note in `receipts` what they receive.
    pub fn start(doors: Vec<Proxy>, count: usize, home: &Path, receipts: PathBuf) -> Hosts {
        fs::write(home.join("worker.token"), TOKEN).unwrap();
        let (slots, home, born) = (Vec::new(), home.to_owned(), AtomicU64::new(0));
        let mut hosts = Hosts { doors, slots, home, receipts, born };
        hosts.slots = (0..count).map(|slot| Mutex::new(hosts.born(slot))).collect();
        hosts
    }

    /// How many slots.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// The way to a replica that hosts take.
    pub fn door(&self, replica: usize) -> &Proxy {
        &self.doors[replica]
    }

    /// The process id of a slot's host, also after its end.
    pub fn pid(&self, slot: usize) -> i32 {
        pid_of(&self.child(slot))
    }

    /// The worker processes of a slot's host: below their guards.
    pub fn workers(&self, slot: usize) -> Vec<i32> {
        children_of(self.pid(slot)).into_iter().flat_map(children_of).collect()
    }

    /// SIGKILLs a slot's host.
    pub fn kill(&self, slot: usize) {
        let mut child = self.child(slot);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops a slot's host in its tracks, or lets it go on.
    pub fn freeze(&self, slot: usize, is_frozen: bool) {
        child::send(&self.child(slot), if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    }

    /// Asks a slot's host to leave, and waits until it is gone.
    pub fn leave(&self, slot: usize) {
        let mut child = self.child(slot);
        child::send(&child, Signal::SIGTERM).unwrap();
        let has_left = child::wait(LEAVE_MAX, || child.try_wait().unwrap().is_some());
        assert!(has_left, "host {} does not leave", pid_of(&child));
    }

    /// Starts a new host in a slot whose last one is gone.
    pub fn revive(&self, slot: usize) {
        *self.child(slot) = self.born(slot);
    }

    /// Kills all of them.
    pub fn end(&self) {
        for slot in 0..self.size() {
            let mut child = self.child(slot);
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    fn child(&self, slot: usize) -> MutexGuard<'_, Child> {
        self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn born(&self, slot: usize) -> Child {
        let n = self.born.fetch_add(1, Ordering::Relaxed);
        let out = File::create(self.home.join(format!("host-{n}.log"))).unwrap();
        let mut work = Command::new(program());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LASTWORD_") {
                work.env_remove(name);
            }
        }
        // Each begins at another replica.
        let urls: Vec<String> =
            (0..self.doors.len()).map(|n| url_of(&self.doors[(slot + n) % self.doors.len()])).collect();
        work.arg("work").args(["--agent", "demo", "--url", &urls.join(","), "--drain", DRAIN]);
        work.args(["--concurrency", &ROOM.to_string(), "--token-file"]).arg(self.home.join("worker.token"));
        work.arg("--data-dir")
            .arg(self.home.join(format!("host-{n}")))
            .arg("--")
            .arg(program())
            .arg("demo-agent");
        // Also where leftovers are looked for.
        work.current_dir(&self.home).env("DEMO_RECEIPTS", &self.receipts).env("RUST_BACKTRACE", "1");
        work.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        child::spawn(work, Signal::SIGKILL).unwrap()
    }
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}
