//! Who is connected: how many there may be, in all and from one address, and who makes room for whom.
//!
//! Owns the count. A connection without a request under way makes room for a new one, the one that has been idle
//! for longest first: who only holds a connection keeps nobody out who uses one. Where all are in use the new
//! one is told so and closed ([`super::full`]); never is one in use cut off. Refuses to lie to whoever looks after this
//! process: `/livez` is answered beyond the ceiling too, since a replica that is full must not be restarted.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::telemetry::metrics;

/// A connection without a request makes room after so long: its first request may be on its way.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Connections that were asked to make room and are still there: so far the ceiling may be passed.
const LEAVING_MAX: usize = 8;
/// A request's head must be there so long after its first byte.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// The connections of one replica. Clones are the same.
#[derive(Debug, Clone)]
pub struct Connected(Arc<ConnectionTable>);

#[derive(Debug)]
struct ConnectionTable {
    max: usize,
    per_address: PerAddress,
    idle_max: Duration,
    head_max: Duration,
    began: Instant,
    crowd: Mutex<Crowd>,
}

/// How many may come from one address.
#[derive(Debug, Clone, Copy)]
pub struct PerAddress {
    /// At most so many.
    pub max: usize,
    /// Whether this machine's own addresses are bound by it: proxies and tunnels on it have many clients each.
    pub binds_loopback: bool,
}

#[derive(Debug, Default)]
struct Crowd {
    places: HashMap<u64, Arc<OpenConnection>>,
    /// Those that were asked to leave do not count.
    by_origin: HashMap<Origin, usize>,
    leaving: usize,
}

/// Who may have many addresses is one origin: of IPv6, a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(u128);

impl Origin {
    fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(v4) => Origin(u128::from(v4.to_bits())),
            // Whoever has one has the other 2^64. Not all zeros above, so never taken for an IPv4.
            IpAddr::V6(v6) => Origin(((v6.to_bits() >> 64) << 64) | (1 << 40)),
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// There are as many as there may be, and all are in use.
    Full,
    /// The same of its address.
    Address,
}

impl ConnectionRefused {
    pub const fn as_str(self) -> &'static str {
        match self {
            ConnectionRefused::Full => "full",
            ConnectionRefused::Address => "address",
        }
    }
}

impl Connected {
    /// Nobody yet.
    pub fn new(max: usize, per_address: PerAddress, idle_max: Duration) -> Connected {
        let (head_max, began, crowd) = (HEAD_MAX, Instant::now(), Mutex::default());
        Connected(Arc::new(ConnectionTable { max, per_address, idle_max, head_max, began, crowd }))
    }

    /// How many there are, but for those that were asked to leave, and how many there may be.
    pub fn count(&self) -> (usize, usize) {
        let crowd = self.crowd();
        (crowd.places.len() - crowd.leaving, self.0.max)
    }

    /// A place for a new connection, which another one may have to leave.
    pub fn admit(&self, number: u64, address: SocketAddr) -> Result<ConnectionSlot, ConnectionRefused> {
        let origin = Origin::of(address.ip());
        let PerAddress { max, binds_loopback } = self.0.per_address;
        let is_bound = binds_loopback || !address.ip().to_canonical().is_loopback();
        let mut crowd = self.crowd();
        let of_origin = crowd.by_origin.get(&origin).copied().unwrap_or(0);
        if is_bound && of_origin >= max && !self.make_room(&mut crowd, Some(origin)) {
            return Err(ConnectionRefused::Address);
        }
        if crowd.places.len() - crowd.leaving >= self.0.max && !self.make_room(&mut crowd, None) {
            return Err(ConnectionRefused::Full);
        }
        let place = Arc::new(OpenConnection {
            origin,
            under_way: AtomicUsize::new(0),
            idle_since: AtomicU64::new(self.now()),
            head_since: AtomicU64::new(0),
            changed: Notify::new(),
            is_blocked: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            leave: Notify::new(),
        });
        crowd.places.insert(number, place.clone());
        *crowd.by_origin.entry(origin).or_default() += 1;
        Ok(ConnectionSlot { connected: self.clone(), number, place })
    }

    /// Has some idle connections leave, of this origin where one is named. Called where there are no descriptors
    /// left, it makes some.
    pub fn clear_some(&self) {
        let mut crowd = self.crowd();
        self.make_room(&mut crowd, None);
    }

    /// Asks the connections that have been idle for longest to leave; whether there is one fewer then.
    fn make_room(&self, crowd: &mut Crowd, of: Option<Origin>) -> bool {
        let Some(before) = self.now().checked_sub(millis(IDLE_MIN)).filter(|before| *before > 0) else {
            return false;
        };
        let free = LEAVING_MAX.saturating_sub(crowd.leaving);
        // Several at once: a look at all of them for each new one would be a lever.
        let wanted = free.min(self.0.max.div_ceil(100));
        if wanted == 0 {
            return false;
        }
        let mut idle: Vec<(u64, u64)> = crowd
            .places
            .iter()
            .filter(|(_, place)| of.is_none_or(|origin| place.origin == origin))
            .filter(|(_, place)| !place.is_leaving.load(Relaxed))
            .filter_map(|(number, place)| Some((place.idle_since()?, *number)))
            .filter(|(since, _)| *since <= before)
            .collect();
        idle.sort_unstable();
        for (_, number) in idle.iter().take(wanted) {
            if let Some(place) = crowd.places.get(number).cloned() {
                place.is_leaving.store(true, Relaxed);
                crowd.leaving += 1;
                crowd.one_fewer(place.origin);
                place.leave.notify_one();
                metrics::connections_cut("idle");
            }
        }
        !idle.is_empty()
    }

    /// Milliseconds, from 1.
    fn now(&self) -> u64 {
        millis(self.0.began.elapsed()) + 1
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.0.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowd {
    fn one_fewer(&mut self, origin: Origin) {
        if let Some(count) = self.by_origin.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.by_origin.remove(&origin);
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// One connection, as others see it.
#[derive(Debug)]
struct OpenConnection {
    origin: Origin,
    /// Requests, of which HTTP/2 has many at a time.
    under_way: AtomicUsize,
    /// Since the newest request, where none is under way.
    idle_since: AtomicU64,
    /// When the first byte of a head came that is not whole yet, or 0.
    head_since: AtomicU64,
    /// One of the two has changed.
    changed: Notify,
    /// An answer waits to be read.
    is_blocked: AtomicBool,
    is_leaving: AtomicBool,
    leave: Notify,
}

impl OpenConnection {
    fn idle_since(&self) -> Option<u64> {
        self.silent_since().filter(|_| !self.is_blocked.load(Relaxed))
    }

    /// The same, whatever waits to be read.
    fn silent_since(&self) -> Option<u64> {
        let is_idle = self.under_way.load(Acquire) == 0;
        Some(self.idle_since.load(Relaxed)).filter(|since| is_idle && *since > 0)
    }
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    connected: Connected,
    number: u64,
    place: Arc<OpenConnection>,
}

impl ConnectionSlot {
    /// For whoever carries the bytes, and the requests.
    pub fn mark(&self) -> Mark {
        Mark { connected: self.connected.clone(), place: self.place.clone() }
    }

    /// Until the connection has had no request for too long, or a request's head takes too long.
    pub async fn silent(&self) {
        let Connected(connected) = &self.connected;
        let since = |since: &AtomicU64| Some(since.load(Relaxed)).filter(|since| *since > 0);
        loop {
            let due = match (since(&self.place.head_since), self.place.silent_since()) {
                (Some(head), _) => Some(head + millis(connected.head_max)),
                (None, Some(idle)) => Some(idle + millis(connected.idle_max)),
                (None, None) => None,
            };
            let left = due.map(|due| Duration::from_millis(due.saturating_sub(self.connected.now())));
            if left.is_some_and(|left| left.is_zero()) {
                metrics::connections_cut("silent");
                return;
            }
            let lapse = async {
                match left {
                    Some(left) => sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = lapse => {}
                () = self.place.changed.notified() => {}
            }
        }
    }

    /// Until the connection is to make room. Where a request has come meanwhile it stays.
    pub async fn asked_to_leave(&self) {
        loop {
            self.place.leave.notified().await;
            if self.place.idle_since().is_some() {
                return;
            }
            let mut crowd = self.connected.crowd();
            if self.place.is_leaving.swap(false, Relaxed) {
                crowd.leaving -= 1;
                *crowd.by_origin.entry(self.place.origin).or_default() += 1;
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut crowd = self.connected.crowd();
        crowd.places.remove(&self.number);
        if self.place.is_leaving.load(Relaxed) {
            crowd.leaving -= 1;
        } else {
            crowd.one_fewer(self.place.origin);
        }
    }
}

/// Says what a connection does.
#[derive(Debug, Clone)]
pub struct Mark {
    connected: Connected,
    place: Arc<OpenConnection>,
}

impl Mark {
    /// A request is under way until what this returns is dropped.
    pub fn request(&self) -> UnderWay {
        self.place.under_way.fetch_add(1, AcqRel);
        self.place.head_since.store(0, Relaxed);
        self.place.changed.notify_one();
        UnderWay(self.clone())
    }

    /// Something came from the client: where no request is under way, of a request's head.
    pub fn heard(&self) {
        let place = &self.place;
        if place.under_way.load(Acquire) == 0 && place.head_since.load(Relaxed) == 0 {
            place.head_since.store(self.connected.now(), Relaxed);
            place.changed.notify_one();
        }
    }

    /// The client speaks HTTP/2 from here on: what comes of it need not be of a request.
    pub fn speaks_in_frames(&self) {
        self.place.head_since.store(0, Relaxed);
        self.place.changed.notify_one();
    }

    /// Whether a request's head has begun and is not whole.
    pub fn is_in_head(&self) -> bool {
        self.place.head_since.load(Relaxed) > 0
    }

    /// Whether the client leaves something unread.
    pub fn blocked(&self, is_blocked: bool) {
        self.place.is_blocked.store(is_blocked, Relaxed);
    }
}

/// A request with its answer.
#[derive(Debug)]
#[must_use = "the request counts as over when it is dropped"]
pub struct UnderWay(Mark);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Mark { connected, place } = &self.0;
        place.idle_since.store(connected.now(), Relaxed);
        place.under_way.fetch_sub(1, AcqRel);
        place.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
