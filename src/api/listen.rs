//! The door itself: accepting connections, keeping them honest, and closing them hard when asked.
//!
//! A body can ask for a reset of its connection through [`Peer`]: a stream that must end early must
//! not look like one that ended well, and to an HTTP/1.0 proxy a plain close looks just so. Whoever must know
//! is told when a connection has ended. How many there may be is in [`super::connected`].

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderValue, Request, Response, Version, header, request::Parts},
};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer, Service, ServiceExt};

use super::{
    Gateway,
    connected::{Admission, Connected, Mark, UnderWay},
    full::refuse,
    linger::{LeftUnread, Linger, may_be_small},
    router,
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
const UNSENT_MAX: u32 = 64 * 1024;
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
                    let one = carry((stream, watch), admission, peer, service.clone(), stops);
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
    service: Router,
    (closing, hard): (CancellationToken, CancellationToken),
) {
    if let Err(why) = keep_honest(&stream) {
        tracing::debug!(%why, "a connection keeps the system's own settings");
    }
    let (address, is_cut_off) = (peer.address, peer.is_cut_off.clone());
    let mark = admission.mark();
    let left_unread = LeftUnread::default();
    let (of, left) = (peer.clone(), left_unread.clone());
    let wire = Wire { stream, peer: of, mark: mark.clone(), watch, left_unread: left, linger: None };
    let wire = TokioIo::new(wire);
    let service = Extension(ConnectInfo(peer)).layer(service);
    let service = service_fn(move |request| answer(request, &service, &mark, &left_unread));
    let mut http = http1::Builder::new();
    // How long a head may take is the admission's: this limit would bind idle connections too.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(UNSENT_MAX as usize);
    let mut connection = pin!(http.serve_connection(wire, service));
    let mut is_closing = false;
    let cut_off = async {
        hard.cancelled().await;
        tokio::time::sleep(RESET_WITHIN).await;
    };
    let mut cut_off = pin!(cut_off);
    let mut asked_to_leave = pin!(admission.asked_to_leave());
    let mut silent = pin!(admission.silent());
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(why) = ended {
                    tracing::debug!(%why, %address, "a connection broke");
                }
                return;
            }
            () = closing.cancelled(), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut cut_off => return,
            // Nothing was asked, and nothing is left to be read.
            () = &mut asked_to_leave => return,
            () = &mut silent => return,
            () = is_cut_off.notified() => return,
        }
    }
}

/// The answer to one request. Where it came before all of a large body the connection ends after it, and says so.
fn answer<S>(
    request: Request<Incoming>,
    service: &S,
    mark: &Mark,
    left_unread: &LeftUnread,
) -> impl Future<Output = Result<Response<Answer>, Infallible>> + use<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    let under_way = mark.request();
    let is_to_be_told = request.version() <= Version::HTTP_11 && !may_be_small(request.headers());
    let request = request.map(|body| Body::new(left_unread.watch(body)));
    let (answer, left_unread) = (service.clone().oneshot(request), left_unread.clone());
    async move {
        let mut answer = answer.await?;
        if is_to_be_told && left_unread.is_so() {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer.map(|body| Answer { body, _under_way: under_way }))
    }
}

/// An answer's body: its request is under way until it has ended.
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
    /// Once nothing more is said.
    linger: Option<Linger>,
}

impl Wire {
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
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
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
