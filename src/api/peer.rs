//! The other end of a connection, as requests and responses see it.
//!
//! A response body can reset its connection through [`Peer`]: a stream that ends early must not look complete, and to
//! an HTTP/1.0 proxy a normal close looks complete. A callback can be set for the end of the connection.
//! is told when a connection has ended.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::request::Parts,
};
use parking_lot::Mutex;
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
    /// The peer of connection `number`, at this address.
    pub fn new(address: SocketAddr, number: u64) -> Peer {
        let (is_reset, at_end, is_cut_off) = Default::default();
        Peer { address, number, is_reset, at_end, is_cut_off }
    }

    /// The address of the other end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of the connection in this process, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Makes the connection end in a reset when it is dropped.
    pub fn reset(&self) {
        self.is_reset.store(true, Ordering::Release);
    }

    /// Whether the connection will end in a reset.
    pub fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Acquire)
    }

    /// Resets the connection now.
    pub fn cut_off(&self) {
        self.reset();
        self.is_cut_off.notify_one();
    }

    /// The client of one HTTP/2 stream, which ends with its stream. The end of the connection says nothing about the
    /// client, since many clients may share a connection.
    pub fn of_stream(&self) -> Peer {
        Peer::new(self.address, self.number)
    }

    /// Waits until [`Peer::cut_off`] is called.
    pub async fn was_cut_off(&self) {
        self.is_cut_off.notified().await;
    }

    /// Call this when the connection has ended: runs the callback.
    pub fn ended(&self) {
        let at_end = self.at_end.lock().take();
        if let Some(call) = at_end {
            call();
        }
    }

    /// Sets the callback for the end of the connection, and replaces an earlier callback.
    pub fn at_end(&self, call: impl FnOnce() + Send + 'static) {
        *self.at_end.lock() = Some(Box::new(call));
    }
}

/// The connection of a request; `None` under a listener that is not ours.
#[derive(Debug, Clone)]
pub struct Connection(pub Option<Peer>);

impl<S: Send + Sync> FromRequestParts<S> for Connection {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Connection(parts.extensions.get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone())))
    }
}
