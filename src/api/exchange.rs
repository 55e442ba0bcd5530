//! One request and its answer, by HTTP/1.1 or HTTP/2.
//!
//! Says to the connection's place that a request is under way until its answer has ended. HTTP/1.1 has one at a time.
//! HTTP/2 has many on one connection, perhaps of many clients behind a balancer, so each has an end of its own:
//! what is cut off, or stands still for too long, ends with its stream, and the others go on.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
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
use tokio::time::{Instant, sleep};
use tower::ServiceExt as _;

use super::{
    connected::{Mark, UnderWay},
    linger::{LeftUnread, may_be_small},
    peer::Peer,
};
use crate::task::{Kind, Supervisor};

/// Answers a request of HTTP/1.1. Where the answer comes before all of a large body the connection ends after it, and
/// says so.
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

/// An answer's body: its request is under way until it has ended.
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

/// Since when a piece of an answer waits for its client. Clones are the same.
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

/// One stream of HTTP/2, as its task sees it.
struct Stream {
    peer: Peer,
    pace: PieceWait,
}

/// Runs the streams of one connection of HTTP/2. Clones are the same.
#[derive(Clone)]
pub struct Streams {
    supervisor: Supervisor,
    stall_max: Duration,
    /// Of the request that was answered last, until its task begins: the two come one after the other.
    next: Arc<Mutex<Option<Stream>>>,
}

impl Streams {
    /// No stream yet. One whose client takes nothing for `stall_max` ends.
    pub fn new(supervisor: &Supervisor, stall_max: Duration) -> Streams {
        Streams { supervisor: supervisor.clone(), stall_max, next: Arc::default() }
    }

    /// Answers a request of HTTP/2.
    pub fn answer(
        &self,
        request: Request<Incoming>,
        (service, peer): (&Router, &Peer),
        mark: &Mark,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + use<> {
        let (under_way, pace, peer) = (mark.request(), PieceWait::default(), peer.of_stream());
        let mut request = request.map(Body::new);
        // The name that was called by stands in the URI, and is looked for in the header.
        let authority = request.uri().authority().and_then(|name| HeaderValue::from_str(name.as_str()).ok());
        if let Some(authority) = authority {
            request.headers_mut().append(header::HOST, authority);
        }
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        *self.next() = Some(Stream { peer, pace: pace.clone() });
        let answer = service.clone().oneshot(request);
        async move {
            answer.await.map(|answer| answer.map(|body| AnswerBody { body, pace, _under_way: under_way }))
        }
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Option<Stream>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, exchange: F) {
        let (stream, stall_max) = (self.next().take(), self.stall_max);
        self.supervisor.spawn(Kind::Client, "exchanges", async move {
            let Some(Stream { peer, pace }) = stream else { return exchange.await };
            // Its end resets the stream where the answer is not whole.
            tokio::select! {
                () = exchange => {}
                () = peer.was_cut_off() => {}
                () = stalled(&pace, stall_max) => {
                    tracing::info!(address = %peer.address(), "a stream is given up: nothing of it is read");
                }
            }
        });
    }
}

/// Until a piece has waited for its client for so long.
async fn stalled(pace: &PieceWait, stall_max: Duration) {
    loop {
        let left = stall_max.saturating_sub(pace.waits_for().unwrap_or_default());
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}
