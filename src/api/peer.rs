//! The other end of a connection, as requests and their answers see it.
//!
//! A body can ask for a reset of its connection through [`Peer`]: a stream that must end early must
//! not look like one that ended well, and to an HTTP/1.0 proxy a plain close looks just so. Whoever must know
//! is told when a connection has ended.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::request::Parts,
};
use tokio::sync::Notify;

/// The other end of a connection.
#[derive(Clone)]
pub struct Peer {
    address: SocketAddr,
    number: u64,
    is_reset: Arc<AtomicBool>,
    at_end: Arc<Mutex<Option<AtEnd>>>,
    is_cut_off: Arc<Notify>,
}

type AtEnd = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.number).field(&self.address).finish()
    }
}

impl Peer {
    /// The other end of the connection of this number, at this address.
    pub fn new(address: SocketAddr, number: u64) -> Peer {
        let (is_reset, at_end, is_cut_off) = Default::default();
        Peer { address, number, is_reset, at_end, is_cut_off }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which connection it is, of this process, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The connection ends in a reset when it is dropped next.
    pub fn reset(&self) {
        self.is_reset.store(true, Ordering::Release);
    }

    /// Whether it does.
    pub fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Acquire)
    }

    /// Ends the connection now, in a reset.
    pub fn cut_off(&self) {
        self.reset();
        self.is_cut_off.notify_one();
    }

    /// The client of one stream of HTTP/2: its end is the stream's. That of the connection, which may carry many clients,
    /// says nothing of it.
    pub fn of_stream(&self) -> Peer {
        Peer::new(self.address, self.number)
    }

    /// Until it is cut off.
    pub async fn was_cut_off(&self) {
        self.is_cut_off.notified().await;
    }

    /// The connection has ended: calls what was to be called then.
    pub fn ended(&self) {
        let at_end = self.at_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(call) = at_end {
            call();
        }
    }

    /// Calls this when the connection has ended, and not what it was to call before.
    pub fn at_end(&self, call: impl FnOnce() + Send + 'static) {
        *self.at_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(call));
    }
}

/// The connection that a request came by, where it came by one of ours.
#[derive(Debug, Clone)]
pub struct Connection(pub Option<Peer>);

impl<S: Send + Sync> FromRequestParts<S> for Connection {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Connection(parts.extensions.get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone())))
    }
}
