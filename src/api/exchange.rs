//! One request and its response, over HTTP/1.1 or HTTP/2.
//!
//! Marks the request as under way until its response has ended. HTTP/1.1 has one request at a time. HTTP/2 has many
//! on one connection, perhaps of many clients behind a load balancer, so each stream ends on its own: a stream that
//! is cut off or stalls does not affect the others.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{HeaderValue, Request, Response, header},
};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, rt::Executor};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tower::ServiceExt as _;

use super::{
    connected::{Mark, UnderWay},
    linger::{LeftUnread, may_be_small},
    peer::Peer,
};
use crate::task::{Supervisor, TaskKind};

/// Answers an HTTP/1.1 request. If the response comes before the whole of a large body was read, the connection is
/// closed after it, and the response says so.
pub fn answer(
    request: Request<Incoming>,
    (service, peer): (&Router, &Peer),
    mark: &Mark,
    left_unread: &LeftUnread,
) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + use<> {
    let under_way = mark.request();
    let is_to_be_told = !may_be_small(request.headers());
    let mut request = request.map(|body| Body::new(left_unread.watch(body)));
    request.extensions_mut().insert(ConnectInfo(peer.clone()));
    let (answer, left_unread) = (service.clone().oneshot(request), left_unread.clone());
    async move {
        let mut answer = answer.await?;
        if is_to_be_told && left_unread.is_so() {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer.map(|body| AnswerBody { body, pace: PieceWait::default(), _under_way: under_way }))
    }
}

/// A response body. Its request is under way until the body is dropped.
pub struct AnswerBody {
    body: Body,
    pace: PieceWait,
    _under_way: UnderWay,
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.pace.asked();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.pace.gave();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long a piece of a response has waited for its client. Clones share their state.
#[derive(Debug, Clone)]
struct PieceWait(Arc<(Instant, AtomicU64)>);

impl Default for PieceWait {
    fn default() -> Self {
        PieceWait(Arc::new((Instant::now(), AtomicU64::new(0))))
    }
}

impl PieceWait {
    /// The client has room for more.
    fn asked(&self) {
        self.0.1.store(0, Ordering::Relaxed);
    }

    fn gave(&self) {
        let (began, since) = &*self.0;
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        since.store(now.max(1), Ordering::Relaxed);
    }

    fn waits_for(&self) -> Option<Duration> {
        let (began, since) = &*self.0;
        let since = Some(since.load(Ordering::Relaxed)).filter(|since| *since > 0)?;
        Some(began.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

/// One HTTP/2 stream, for its task.
struct Stream {
    peer: Peer,
    pace: PieceWait,
}

/// Runs the streams of one HTTP/2 connection. Clones share their state.
#[derive(Clone)]
pub struct Streams {
    supervisor: Supervisor,
    stall_max: Duration,
    /// The stream of the newest request, until its task starts. hyper starts each task right after the call for its
    /// request.
    next: Arc<Mutex<Option<Stream>>>,
}

impl Streams {
    /// Without streams yet. A stream whose client takes nothing for `stall_max` is ended.
    pub fn new(supervisor: &Supervisor, stall_max: Duration) -> Streams {
        Streams { supervisor: supervisor.clone(), stall_max, next: Arc::default() }
    }

    /// Answers an HTTP/2 request.
    pub fn answer(
        &self,
        request: Request<Incoming>,
        (service, peer): (&Router, &Peer),
        mark: &Mark,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + use<> {
        let (under_way, pace, peer) = (mark.request(), PieceWait::default(), peer.of_stream());
        let mut request = request.map(Body::new);
        // HTTP/2 has the host name in the URI; the checks look for it in the header.
        let authority = request.uri().authority().and_then(|name| HeaderValue::from_str(name.as_str()).ok());
        if let Some(authority) = authority {
            request.headers_mut().append(header::HOST, authority);
        }
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        *self.next.lock() = Some(Stream { peer, pace: pace.clone() });
        let answer = service.clone().oneshot(request);
        async move {
            answer.await.map(|answer| answer.map(|body| AnswerBody { body, pace, _under_way: under_way }))
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, exchange: F) {
        let (stream, stall_max) = (self.next.lock().take(), self.stall_max);
        self.supervisor.spawn(TaskKind::Client, "exchanges", async move {
            let Some(Stream { peer, pace }) = stream else { return exchange.await };
            // The end of this task resets the stream if its response is incomplete.
            tokio::select! {
                () = exchange => {}
                () = peer.was_cut_off() => {}
                () = stalled(&pace, stall_max) => {
                    tracing::info!(address = %peer.address(), "a stream is closed: its client reads nothing");
                }
            }
        });
    }
}

/// Waits until a piece has waited for its client for `stall_max`.
async fn stalled(pace: &PieceWait, stall_max: Duration) {
    loop {
        let left = stall_max.saturating_sub(pace.waits_for().unwrap_or_default());
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}
