//! The two doors: base URLs, and the replica that is behind each of them at present.
//!
//! Owns the forwards. A forward is bound to one replica and ends with it, so a door that has lost its replica gets a
//! forward to another ready replica that is behind no door. Without `--forward`, URLs are fixed and the list names the
//! replicas. A third door, the front, may lead to any ready replica, as a Service does: clients that must leave a
//! replica go there.

use std::{
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    Args,
    orders::{Listed, Orders},
};

/// How often forwards are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a forward may take until it takes connections.
const FORWARD_MAX: Duration = Duration::from_secs(10);
/// How long one question of readiness may take.
const READY_MAX: Duration = Duration::from_secs(3);

/// Door A is 0, door B is 1, the front is 2.
pub struct Doors {
    urls: [String; 2],
    front: Option<String>,
    ports: [u16; 2],
    behind: Mutex<[Option<Forward>; 2]>,
    orders: Arc<Orders>,
    http: reqwest::Client,
}

/// A door's forward while it lasts.
struct Forward {
    replica: String,
    child: Child,
}

impl Drop for Forward {
    fn drop(&mut self) {
        // The shell and what it started: they are a group.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

impl Doors {
    /// Opens both, and keeps them open.
    pub fn open(args: &Args, orders: Arc<Orders>) -> Arc<Doors> {
        let urls = [&args.url_a, &args.url_b].map(|url| url.trim_end_matches('/').to_owned());
        let ports = urls.each_ref().map(|url| port_of(url));
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(READY_MAX).build();
        let front = args.front.as_ref().map(|url| url.trim_end_matches('/').to_owned());
        let http = http.expect("a client");
        let doors = Arc::new(Doors { urls, front, ports, behind: Mutex::default(), orders, http });
        if doors.orders.has_forward() {
            let keeper = Arc::downgrade(&doors);
            tokio::spawn(async move {
                while let Some(doors) = keeper.upgrade() {
                    doors.keep().await;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
        }
        doors
    }

    /// A door's base URL.
    pub fn url(&self, door: usize) -> &str {
        self.urls.get(door).or(self.front.as_ref()).expect("a door")
    }

    /// The front, where there is one.
    pub fn front(&self) -> Option<usize> {
        self.front.as_ref().map(|_| self.urls.len())
    }

    /// Where a client goes that got nothing, or nothing more, behind this door.
    pub fn elsewhere(&self, door: usize) -> usize {
        self.front().unwrap_or_else(|| 1 - door)
    }

    /// The name of the replica behind a door.
    pub async fn behind(&self, door: usize) -> String {
        let name = match self.orders.has_forward() {
            true => self.lock()[door].as_ref().map(|forward| forward.replica.clone()),
            false => {
                let listed = self.orders.list().await.expect("a list");
                let own = Some(self.urls[door].clone());
                listed.into_iter().find(|one| one.url == own).map(|one| one.name)
            }
        };
        name.unwrap_or_else(|| panic!("no replica is behind {}", self.urls[door]))
    }

    /// Waits until two different replicas answer behind the doors and say that they are ready; how long
    /// that took.
    pub async fn both_ready(&self, at_most: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        loop {
            let why = match (self.is_ready(0).await, self.is_ready(1).await, self.orders.list().await) {
                (true, true, Ok(listed)) if listed.len() >= 2 => return Ok(began.elapsed()),
                (a, b, listed) => format!(
                    "{} {}, {} {}, listed: {}",
                    self.urls[0],
                    if a { "ready" } else { "not ready" },
                    self.urls[1],
                    if b { "ready" } else { "not ready" },
                    names(&listed)
                ),
            };
            if began.elapsed() > at_most {
                return Err(format!("{why}, after {at_most:?}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn is_ready(&self, door: usize) -> bool {
        let asked = self.http.get(format!("{}/readyz", self.urls[door])).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// Gives a door that has no forward one to a replica that is behind no door.
    async fn keep(&self) {
        let open: Vec<usize> = {
            let mut behind = self.lock();
            for held in behind.iter_mut() {
                held.take_if(|forward| !matches!(forward.child.try_wait(), Ok(None)));
            }
            (0..2).filter(|&door| behind[door].is_none()).collect()
        };
        for door in open {
            let Ok(listed) = self.orders.list().await else { continue };
            let taken: Vec<String> = self.lock().iter().flatten().map(|held| held.replica.clone()).collect();
            let Some(free) = listed.into_iter().find(|one| !taken.contains(&one.name)) else { continue };
            let Ok(child) = self.orders.forward(&free.name, self.ports[door]) else { continue };
            let mut forward = Forward { replica: free.name, child };
            if is_open(&mut forward, self.ports[door]).await {
                self.lock()[door] = Some(forward);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Forward>; 2]> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the forward takes connections before it ends.
async fn is_open(forward: &mut Forward, port: u16) -> bool {
    let began = Instant::now();
    while began.elapsed() < FORWARD_MAX && matches!(forward.child.try_wait(), Ok(None)) {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

fn port_of(url: &str) -> u16 {
    let parsed = reqwest::Url::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
    parsed.port_or_known_default().unwrap_or_else(|| panic!("{url} has no port"))
}

fn names(listed: &Result<Vec<Listed>, String>) -> String {
    match listed {
        Ok(listed) => format!("{:?}", listed.iter().map(|one| &one.name).collect::<Vec<_>>()),
        Err(why) => why.clone(),
    }
}
