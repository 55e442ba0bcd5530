//! Connection limits: how many connections there may be, in all and per address, and which one closes for a new one.
//!
//! Owns the count. An idle connection is closed to make room for a new one, the longest idle one first, so a client
//! that only holds connections keeps no other client out. If all connections are in use, the new one is refused
//! ([`super::full`]); a connection in use is never closed. Health checks stay truthful: `/livez` is answered above
//! the limit, too, because a full replica must not be restarted.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::telemetry::metrics;

/// A connection must be idle for this long before it is closed for another: its first request may be on its way.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Connections that were asked to close and are still open. The limit may be exceeded by this many.
const LEAVING_MAX: usize = 8;
/// Timeout of a request's head, from its first byte.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// The connections of one replica. Clones share their state.
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

/// The limit of connections from one address.
#[derive(Debug, Clone, Copy)]
pub struct PerAddress {
    /// The limit.
    pub max: usize,
    /// Whether the limit applies to loopback addresses: local proxies and tunnels have many clients each.
    pub binds_loopback: bool,
}

#[derive(Debug, Default)]
struct Crowd {
    places: HashMap<u64, Arc<OpenConnection>>,
    /// Without connections that were asked to close.
    by_origin: HashMap<Origin, usize>,
    leaving: usize,
}

/// The party behind an address: an IPv4 address, or an IPv6 /64 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(u128);

impl Origin {
    fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(v4) => Origin(u128::from(v4.to_bits())),
            // One party has all 2^64 addresses of its network. Bit 40 tells the value from every IPv4 address.
            IpAddr::V6(v6) => Origin(((v6.to_bits() >> 64) << 64) | (1 << 40)),
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// The limit is reached, and all connections are in use.
    Full,
    /// The limit of its address is reached, and all its connections are in use.
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
    /// A table without connections.
    pub fn new(max: usize, per_address: PerAddress, idle_max: Duration) -> Connected {
        let (head_max, began, crowd) = (HEAD_MAX, Instant::now(), Mutex::default());
        Connected(Arc::new(ConnectionTable { max, per_address, idle_max, head_max, began, crowd }))
    }

    /// Open connections without those that were asked to close, and the limit.
    pub fn count(&self) -> (usize, usize) {
        let crowd = self.0.crowd.lock();
        (crowd.places.len() - crowd.leaving, self.0.max)
    }

    /// A slot for a new connection. May ask idle connections to close.
    pub fn admit(&self, number: u64, address: SocketAddr) -> Result<ConnectionSlot, ConnectionRefused> {
        let origin = Origin::of(address.ip());
        let PerAddress { max, binds_loopback } = self.0.per_address;
        let is_bound = binds_loopback || !address.ip().to_canonical().is_loopback();
        let mut crowd = self.0.crowd.lock();
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

    /// Asks some idle connections to close. Called when the process has no file descriptors left.
    pub fn clear_some(&self) {
        let mut crowd = self.0.crowd.lock();
        self.make_room(&mut crowd, None);
    }

    /// Asks the longest idle connections to close, of one origin if given. False if none is idle.
    fn make_room(&self, crowd: &mut Crowd, of: Option<Origin>) -> bool {
        let Some(before) = self.now().checked_sub(millis(IDLE_MIN)).filter(|before| *before > 0) else {
            return false;
        };
        let free = LEAVING_MAX.saturating_sub(crowd.leaving);
        // Several at a time: a scan of the whole table per new connection would help an attacker.
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

    /// Milliseconds since the table was made, from 1.
    fn now(&self) -> u64 {
        millis(self.0.began.elapsed()) + 1
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

/// The state of one connection.
#[derive(Debug)]
struct OpenConnection {
    origin: Origin,
    /// Requests under way. HTTP/2 may have many.
    under_way: AtomicUsize,
    /// When the last request ended; valid while none is under way.
    idle_since: AtomicU64,
    /// When the first byte of an incomplete head came, or 0.
    head_since: AtomicU64,
    /// Notified when one of the fields above changes.
    changed: Notify,
    /// Whether response bytes wait for the client.
    is_blocked: AtomicBool,
    is_leaving: AtomicBool,
    leave: Notify,
}

impl OpenConnection {
    fn idle_since(&self) -> Option<u64> {
        self.silent_since().filter(|_| !self.is_blocked.load(Relaxed))
    }

    /// Since when no request is under way, even if response bytes wait for the client.
    fn silent_since(&self) -> Option<u64> {
        let is_idle = self.under_way.load(Acquire) == 0;
        Some(self.idle_since.load(Relaxed)).filter(|since| is_idle && *since > 0)
    }
}

/// The slot of one connection, released on drop.
#[derive(Debug)]
pub struct ConnectionSlot {
    connected: Connected,
    number: u64,
    place: Arc<OpenConnection>,
}

impl ConnectionSlot {
    /// A handle for the code that carries bytes and requests.
    pub fn mark(&self) -> Mark {
        Mark { connected: self.connected.clone(), place: self.place.clone() }
    }

    /// Waits until the connection has been idle for too long, or a request's head has taken too long.
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

    /// Waits until the connection must close to make room. If a request has come in the meantime, the connection
    /// stays.
    pub async fn asked_to_leave(&self) {
        loop {
            self.place.leave.notified().await;
            if self.place.idle_since().is_some() {
                return;
            }
            let mut crowd = self.connected.0.crowd.lock();
            if self.place.is_leaving.swap(false, Relaxed) {
                crowd.leaving -= 1;
                *crowd.by_origin.entry(self.place.origin).or_default() += 1;
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut crowd = self.connected.0.crowd.lock();
        crowd.places.remove(&self.number);
        if self.place.is_leaving.load(Relaxed) {
            crowd.leaving -= 1;
        } else {
            crowd.one_fewer(self.place.origin);
        }
    }
}

/// Reports the activity of a connection.
#[derive(Debug, Clone)]
pub struct Mark {
    connected: Connected,
    place: Arc<OpenConnection>,
}

impl Mark {
    /// Marks a request as under way until the result is dropped.
    pub fn request(&self) -> UnderWay {
        self.place.under_way.fetch_add(1, AcqRel);
        self.place.head_since.store(0, Relaxed);
        self.place.changed.notify_one();
        UnderWay(self.clone())
    }

    /// Reports received bytes. If no request is under way, they belong to a request's head.
    pub fn heard(&self) {
        let place = &self.place;
        if place.under_way.load(Acquire) == 0 && place.head_since.load(Relaxed) == 0 {
            place.head_since.store(self.connected.now(), Relaxed);
            place.changed.notify_one();
        }
    }

    /// The client speaks HTTP/2 from here on, so received bytes need not belong to a request.
    pub fn speaks_in_frames(&self) {
        self.place.head_since.store(0, Relaxed);
        self.place.changed.notify_one();
    }

    /// Whether a request's head is incomplete.
    pub fn is_in_head(&self) -> bool {
        self.place.head_since.load(Relaxed) > 0
    }

    /// Reports whether response bytes wait for the client.
    pub fn blocked(&self, is_blocked: bool) {
        self.place.is_blocked.store(is_blocked, Relaxed);
    }
}

/// A request under way, with its response.
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
