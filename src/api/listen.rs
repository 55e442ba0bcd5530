//! The door itself: accepting connections, keeping them honest, and closing them hard when asked.
//!
//! A body can ask for a reset of its connection through [`Peer`]: a stream that must end early must
//! not look like one that ended well, and to an HTTP/1.0 proxy a plain close looks just so. Whoever must know
//! is told when a connection has ended. How many there may be is in [`super::connected`].

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, FromRequestParts},
    http::request::Parts,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Gateway,
    connected::{Admission, Connected, Mark},
    exchange::Streams,
    full::refuse,
    linger::{LeftUnread, Linger},
    router,
    speak::{PREFACE, speak},
    stall::{UNACKNOWLEDGED_MAX, Watch, set_unacknowledged_max},
};
use crate::task::Kind;

/// A silent connection is probed after so long, every so often.
const SILENT_MAX: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// After the hard stop streams get so long to be reset.
const RESET_WITHIN: Duration = Duration::from_millis(500);
/// What a connection holds for a client that does not read, here and in the system: more is not even
/// read from the log.
pub const UNSENT_MAX: u32 = 64 * 1024;
/// Connections that are refused at a time; more wait to be accepted.
const REFUSALS_MAX: usize = 8;
/// Where a connection cannot be accepted the next is tried after so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until the hard stop. Once `closing` is cancelled it takes no more connections,
/// ends idle ones, and returns when the last has ended. During a drain that comes before, requests
/// are still answered.
pub async fn serve(listener: TcpListener, gateway: Gateway, closing: CancellationToken) {
    let supervisor = gateway.supervisor.clone();
    let hard = supervisor.hard().clone();
    let (connected, stall_max) = (gateway.connected().clone(), gateway.config.stream_stall_max.0);
    let origins = gateway.doors.origins.clone();
    let service = router(gateway);
    let connections = TaskTracker::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let taking = async {
        for number in 1.. {
            let (stream, address) = accept(&listener, &connected).await;
            match connected.admit(number, address) {
                Ok(admission) => {
                    let (is_reset, at_end, is_cut_off) = Default::default();
                    let peer = Peer { address, number, is_reset, at_end, is_cut_off };
                    let watch = Watch::new(stall_max);
                    let stops = (closing.clone(), hard.clone());
                    let streams = Streams::new(&supervisor, stall_max);
                    let service = (service.clone(), streams);
                    let one = carry((stream, watch), admission, peer, service, stops);
                    supervisor.spawn(Kind::Client, "connections", connections.track_future(one));
                }
                Err(why) => {
                    let turn = refusals.clone().acquire_owned().await;
                    let origins = origins.clone();
                    let one = async move {
                        refuse(stream, why, &origins).await;
                        drop(turn);
                    };
                    supervisor.spawn(Kind::Client, "refusals", connections.track_future(one));
                }
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = closing.cancelled() => {}
        () = hard.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener, connected: &Connected) -> (TcpStream, SocketAddr) {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(why) => {
                // Out of descriptors, mostly: those who call wait, and a busy loop would not help them.
                if failures == 0 {
                    tracing::warn!(%why, "a connection could not be accepted");
                }
                failures += 1;
                connected.clear_some();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, to its end. Once `closing` is cancelled it ends with the answer that is under way.
async fn carry(
    (stream, watch): (TcpStream, Watch),
    admission: Admission,
    peer: Peer,
    (service, streams): (Router, Streams),
    (closing, hard): (CancellationToken, CancellationToken),
) {
    if let Err(why) = keep_honest(&stream) {
        tracing::debug!(%why, "a connection keeps the system's own settings");
    }
    let (address, is_cut_off) = (peer.address, peer.is_cut_off.clone());
    let mark = admission.mark();
    let wire = Wire::new(stream, peer.clone(), mark.clone(), watch);
    let spoken = speak(wire, (service, peer), mark, streams, closing);
    let cut_off = async {
        hard.cancelled().await;
        tokio::time::sleep(RESET_WITHIN).await;
    };
    tokio::select! {
        ended = spoken => {
            if let Err(why) = ended {
                tracing::debug!(%why, %address, "a connection broke");
            }
        }
        () = cut_off => {}
        // Nothing was asked, and nothing is left to be read.
        () = admission.asked_to_leave() => {}
        () = admission.silent() => {}
        () = is_cut_off.notified() => {}
    }
}

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

    /// Ends the connection now, in a reset.
    pub fn cut_off(&self) {
        self.reset();
        self.is_cut_off.notify_one();
    }

    /// The client of one stream of HTTP/2: its end is the stream's. That of the connection, which may carry many clients,
    /// says nothing of it.
    pub fn of_stream(&self) -> Peer {
        let (is_reset, at_end, is_cut_off) = Default::default();
        Peer { address: self.address, number: self.number, is_reset, at_end, is_cut_off }
    }

    /// Until it is cut off.
    pub async fn was_cut_off(&self) {
        self.is_cut_off.notified().await;
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

/// A frame leaves at once, and a client that vanished without a word is noticed.
fn keep_honest(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENT_MAX).with_interval(PROBE_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    set_unacknowledged_max(stream, UNACKNOWLEDGED_MAX)
}

/// A connection's bytes.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    peer: Peer,
    mark: Mark,
    watch: Watch,
    left_unread: LeftUnread,
    /// What was read to know what is spoken, and is to be read again.
    ahead: Vec<u8>,
    is_http2: bool,
    /// Once nothing more is said.
    linger: Option<Linger>,
}

impl Wire {
    fn new(stream: TcpStream, peer: Peer, mark: Mark, watch: Watch) -> Wire {
        let (left_unread, ahead, is_http2, linger) = Default::default();
        Wire { stream, peer, mark, watch, left_unread, ahead, is_http2, linger }
    }

    /// Whether the newest request was answered before all of its body was read.
    pub fn left_unread(&self) -> LeftUnread {
        self.left_unread.clone()
    }

    /// Whether the client begins as one of HTTP/2 does. Reads no further than that takes.
    pub async fn begins_with_preface(&mut self) -> bool {
        while PREFACE.starts_with(&self.ahead) && self.ahead.len() < PREFACE.len() {
            let mut piece = [0; PREFACE.len()];
            let free = PREFACE.len() - self.ahead.len();
            match self.stream.read(piece.get_mut(..free).unwrap_or_default()).await {
                Ok(read) if read > 0 => self.ahead.extend_from_slice(piece.get(..read).unwrap_or_default()),
                _ => return false,
            }
            self.mark.heard();
        }
        self.is_http2 = PREFACE.starts_with(&self.ahead);
        self.is_http2
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.watch.wrote();
        self.mark.blocked(written.is_pending());
        written
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.peer.is_reset.load(Ordering::Acquire) {
            // Closing with a linger of zero sends a reset.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
        let at_end = self.peer.at_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(call) = at_end {
            call();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Wire { stream, watch, .. } = &mut *self;
        // Reading is asked for all the time, since that is how an end is noticed.
        if let Poll::Ready(why) = watch.poll(stream, cx) {
            self.peer.reset();
            tracing::info!(address = %self.peer.address, %why, "a connection is given up");
            return Poll::Ready(Err(why));
        }
        if !self.ahead.is_empty() {
            let read = self.ahead.len().min(into.remaining());
            into.put_slice(self.ahead.get(..read).unwrap_or_default());
            self.ahead.drain(..read);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before && !self.is_http2 {
            self.mark.heard();
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire { stream, peer, mark, left_unread, linger, .. } = &mut *self;
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
            let is_heard_out = !left_unread.is_so() && !mark.is_in_head();
            if is_heard_out || peer.is_reset.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
        }
        linger.get_or_insert_default().poll(stream, cx).map(Ok)
    }
}
