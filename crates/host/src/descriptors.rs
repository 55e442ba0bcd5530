//! File descriptors: how many this process may open, how many it has open, and whether it can start workers.
//!
//! Owns the process's own limit, raised at start as far as the system allows: the usual soft limit is meant for
//! programs that use `select`, and a replica needs one descriptor a connection. Workers get the former limit back.
//! Never guesses: usage is counted ([`measure`]), and failed starts are reported ([`lacked`]). Before a claim the
//! engine asks [`shortage`] and claims nothing during one: a queued turn can run on another replica, a turn that
//! fails here cannot.

use std::{
    fs,
    io::{self, ErrorKind},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use parking_lot::Mutex;

/// Descriptors of a worker: three pipes, the lifeline twice and the guard; during its start also their other ends.
const PER_WORKER: u64 = 8;
/// Open descriptors of an idle replica, without Postgres.
const AT_REST: u64 = 32;
/// Reserve for everything uncounted, beside Postgres' connections.
const KEPT: u64 = 16;
/// Upper bound of the raised limit; also used where the system has no limit.
const LIMIT_MAX: u64 = 1 << 20;
/// The pause after a start failed for lack of a resource. Doubles with each failure until a start succeeds.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The soft limit this process was started with.
static FORMER: OnceLock<u64> = OnceLock::new();
static GAUGE: Gauge = Gauge::new();

/// Raises this process's limit as far as allowed, and sets the reserve for `postgres` connections and everything
/// uncounted. Returns the limit now in force.
pub fn raise(postgres: u32) -> u64 {
    GAUGE.reserve.store(u64::from(postgres) + KEPT, Relaxed);
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        FORMER.get_or_init(|| soft);
        let wanted = hard.min(LIMIT_MAX);
        if soft < wanted
            && let Err(why) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        {
            tracing::warn!(%why, soft, hard, "the limit of open files could not be raised");
        }
    }
    measure();
    seen().max
}

/// The limit of a worker: the soft limit this process was started with. `None`: the limit was not raised. Safe
/// between fork and exec.
pub fn former() -> Option<u64> {
    FORMER.get().copied()
}

/// Sets this process's own soft limit. Safe between fork and exec.
///
/// # Errors
/// The system's error.
pub fn lower(soft: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?)
}

/// Counts the open descriptors if that is fast; returns false if [`measure`] is needed.
fn measure_at_once() -> bool {
    // Since Linux 6.2 the directory's size is the count, and reading it needs no descriptor.
    match fs::metadata("/proc/self/fd").map(|directory| directory.len()) {
        Ok(used) if used > 0 => {
            GAUGE.measured(used, limit());
            true
        }
        Ok(_) => false,
        // This system does not tell at all.
        Err(_) => true,
    }
}

/// Counts the open descriptors, on a blocking thread if that is slow.
pub async fn look() {
    if !measure_at_once() {
        // Fails only after a panic, which is reported elsewhere.
        let _ = tokio::task::spawn_blocking(measure).await;
    }
}

/// Counts the open descriptors. May read a directory with one entry each, so not for the runtime's threads.
fn measure() {
    if measure_at_once() {
        return;
    }
    match fs::read_dir("/proc/self/fd") {
        // Without the descriptor that reads.
        Ok(open) => GAUGE.measured((open.count() as u64).saturating_sub(1), limit()),
        Err(why) if Lack::of(&why) == Some(Lack::Descriptors) => GAUGE.measured(limit(), limit()),
        Err(_) => {}
    }
}

fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// The last count and the limit; both 0 before the first count.
pub fn seen() -> LimitUse {
    LimitUse { used: GAUGE.used.load(Relaxed), max: GAUGE.max.load(Relaxed) }
}

/// The bound on client connections: `wanted`, less if Postgres and `workers` need their share. Workers get at most
/// half: a replica that nobody can reach needs no workers.
pub fn connections(wanted: u32, workers: u32) -> usize {
    GAUGE.connections(wanted, workers)
}

/// The number of workers that may be started now.
pub fn starts() -> usize {
    GAUGE.starts()
}

/// Counts the descriptors of a start that is about to happen, until the next measurement.
pub fn promised() {
    GAUGE.promised.fetch_add(1, Relaxed);
}

/// Records a start that failed for lack of this resource: nothing is claimed for a while.
pub fn lacked(lack: Lack) {
    GAUGE.lacked(lack, Instant::now());
}

/// Records a successful start.
pub fn started() {
    GAUGE.started();
}

/// The resource that is short, if any.
pub fn shortage() -> Option<Lack> {
    GAUGE.shortage(Instant::now())
}

/// Used and allowed descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUse {
    /// Open descriptors.
    pub used: u64,
    /// The soft limit.
    pub max: u64,
}

/// A resource that a process may be short of, through no fault of the program to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Descriptors of the process or the system.
    Descriptors,
    /// Processes of the user or the control group.
    Processes,
    /// Memory.
    Memory,
}

impl Lack {
    /// The resource that an error is about, if it is about one.
    pub fn of(why: &io::Error) -> Option<Lack> {
        match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Some(Lack::Descriptors),
            Some(Errno::EAGAIN) => Some(Lack::Processes),
            Some(Errno::ENOMEM) => Some(Lack::Memory),
            _ if why.kind() == ErrorKind::OutOfMemory => Some(Lack::Memory),
            _ => None,
        }
    }

    /// The name in logs and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Lack::Descriptors => "descriptors",
            Lack::Processes => "processes",
            Lack::Memory => "memory",
        }
    }
}

/// The state of one process.
#[derive(Debug)]
struct Gauge {
    used: AtomicU64,
    max: AtomicU64,
    reserve: AtomicU64,
    /// Workers whose start came after the last count.
    promised: AtomicU64,
    is_low: AtomicBool,
    pause: Mutex<StartsPause>,
}

#[derive(Debug)]
struct StartsPause {
    /// The last shortage, and until when nothing is claimed because of it.
    last: Option<(Lack, Instant)>,
    next: Duration,
}

impl Gauge {
    const fn new() -> Gauge {
        Gauge {
            used: AtomicU64::new(0),
            max: AtomicU64::new(0),
            reserve: AtomicU64::new(KEPT),
            promised: AtomicU64::new(0),
            is_low: AtomicBool::new(false),
            pause: Mutex::new(StartsPause { last: None, next: PAUSE }),
        }
    }

    fn measured(&self, used: u64, max: u64) {
        self.used.store(used, Relaxed);
        self.max.store(max, Relaxed);
        self.promised.store(0, Relaxed);
        let above_reserve = max.saturating_sub(used).saturating_sub(self.reserve());
        // Hysteresis: a shortage ends only when two workers could be started.
        let needed = if self.is_low.load(Relaxed) { 2 * PER_WORKER } else { PER_WORKER };
        self.is_low.store(above_reserve < needed, Relaxed);
    }

    /// The reserve; at most a quarter of the limit.
    fn reserve(&self) -> u64 {
        self.reserve.load(Relaxed).min(self.max.load(Relaxed) / 4)
    }

    fn connections(&self, wanted: u32, workers: u32) -> usize {
        let max = self.max.load(Relaxed);
        let wanted = wanted as usize;
        if max == 0 {
            return wanted;
        }
        let free = max.saturating_sub(AT_REST + self.reserve());
        let workers = (u64::from(workers) * PER_WORKER).min(free / 2);
        wanted.min(usize::try_from(free - workers).unwrap_or(usize::MAX)).max(1)
    }

    fn starts(&self) -> usize {
        let max = self.max.load(Relaxed);
        if max == 0 {
            return usize::MAX;
        }
        let taken = self.used.load(Relaxed) + self.reserve() + self.promised.load(Relaxed) * PER_WORKER;
        usize::try_from(max.saturating_sub(taken) / PER_WORKER).unwrap_or(usize::MAX)
    }

    fn lacked(&self, lack: Lack, now: Instant) {
        let mut pause = self.pause.lock();
        // Starts that began together fail together and count as one failure.
        if pause.last.is_some_and(|(_, until)| now < until) {
            return;
        }
        pause.last = Some((lack, now + pause.next));
        pause.next = (pause.next * 2).min(PAUSE_MAX);
    }

    fn started(&self) {
        self.pause.lock().next = PAUSE;
    }

    fn shortage(&self, now: Instant) -> Option<Lack> {
        let failed = self.pause.lock().last.filter(|(_, until)| now < *until).map(|(lack, _)| lack);
        failed.or_else(|| self.is_low.load(Relaxed).then_some(Lack::Descriptors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted() {
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        measure();
        let LimitUse { used, max } = seen();
        assert!((100..max).contains(&used), "{used} of {max}");
        drop(files);
    }

    #[test]
    fn connections_leave_room_for_postgres_and_workers() {
        let gauge = Gauge::new();
        assert_eq!(gauge.connections(20_000, 64), 20_000, "nothing is known");
        gauge.reserve.store(27, Relaxed);
        for (max, turns, connections) in [
            (1 << 20, 64, 20_000),
            (4096, 64, 3525),
            (1024, 64, 483),
            (256, 64, 99),
            (256, 4, 165),
            (16, 64, 1),
        ] {
            gauge.measured(10, max);
            assert_eq!(gauge.connections(20_000, turns), connections, "of {max}");
        }
    }

    #[test]
    fn so_many_workers_are_started_as_there_is_room_for() {
        let gauge = Gauge::new();
        assert_eq!(gauge.starts(), usize::MAX, "nothing is known");
        gauge.reserve.store(24, Relaxed);
        gauge.measured(100, 256);
        assert_eq!((gauge.starts(), gauge.shortage(Instant::now())), (16, None));
        gauge.promised.fetch_add(15, Relaxed);
        assert_eq!(gauge.starts(), 1);
        // The next count includes them.
        gauge.measured(230, 256);
        assert_eq!((gauge.starts(), gauge.shortage(Instant::now())), (0, Some(Lack::Descriptors)));
        gauge.measured(222, 256);
        assert_eq!(
            gauge.shortage(Instant::now()),
            Some(Lack::Descriptors),
            "enough for one is too few again soon"
        );
        gauge.measured(216, 256);
        assert_eq!(gauge.shortage(Instant::now()), None);
    }

    #[test]
    fn after_a_failed_start_nothing_is_claimed_for_longer_and_longer_until_one_goes_well() {
        let (gauge, now) = (Gauge::new(), Instant::now());
        gauge.lacked(Lack::Memory, now);
        gauge.lacked(Lack::Memory, now);
        assert_eq!(gauge.shortage(now + PAUSE / 2), Some(Lack::Memory));
        assert_eq!(gauge.shortage(now + PAUSE), None, "two at once are one");
        let again = now + PAUSE;
        gauge.lacked(Lack::Processes, again);
        assert_eq!(gauge.shortage(again + PAUSE), Some(Lack::Processes));
        assert_eq!(gauge.shortage(again + 2 * PAUSE), None);
        gauge.started();
        let later = again + 2 * PAUSE;
        gauge.lacked(Lack::Descriptors, later);
        assert_eq!(gauge.shortage(later + PAUSE), None);
        let mut last = later;
        for _ in 0..20 {
            last += 2 * PAUSE_MAX;
            gauge.lacked(Lack::Memory, last);
        }
        assert_eq!(gauge.shortage(last + PAUSE_MAX / 2), Some(Lack::Memory));
        assert_eq!(gauge.shortage(last + PAUSE_MAX), None, "and no longer");
    }

    #[test]
    fn an_error_says_what_is_lacking() {
        let of = |errno: Errno| Lack::of(&io::Error::from(errno));
        assert_eq!(of(Errno::EMFILE), Some(Lack::Descriptors));
        assert_eq!(of(Errno::ENFILE), Some(Lack::Descriptors));
        assert_eq!(of(Errno::EAGAIN), Some(Lack::Processes));
        assert_eq!(of(Errno::ENOMEM), Some(Lack::Memory));
        assert_eq!(of(Errno::ENOENT), None);
    }
}
