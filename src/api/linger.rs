//! The close of a connection whose client is still sending.
//!
//! Closing a socket with unread bytes resets the connection, and the reset may overtake the response: a client that
//! sends a large body would see a broken pipe instead of a refusal. So the rest of the body is read and dropped after
//! the response, within limits of bytes and time. Then the connection is closed.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Bytes,
    http::{HeaderMap, header},
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// The most bytes that are dropped, the longest total time, and the longest time without a byte.
const BYTES_MAX: usize = 64 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(30);
const SILENT_MAX: Duration = Duration::from_secs(2);
/// Bytes per read.
const PIECE_BYTES: usize = 16 * 1024;
/// The rest of a body up to this size usually comes with the head, so its connection can stay open.
const SMALL: u64 = 16 * 1024;

/// Whether the newest request was answered before its whole body was read. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct LeftUnread(Arc<AtomicBool>);

impl LeftUnread {
    /// Wraps a body that is about to be read.
    pub fn watch(&self, body: Incoming) -> Watched {
        let is_unread = !body.is_end_stream();
        self.0.store(is_unread, Ordering::Release);
        Watched { body, left_unread: self.clone() }
    }

    /// Whether bytes are left.
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A request body that notes when all of it was read.
#[derive(Debug)]
pub struct Watched {
    body: Incoming,
    left_unread: LeftUnread,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.left_unread.0.store(false, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a body is announced as small enough to be dropped without closing the connection.
pub fn may_be_small(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.is_some_and(|length: u64| length <= SMALL)
}

/// Reads and drops what a client still sends.
#[derive(Debug)]
pub struct Linger {
    until: Instant,
    bytes_left: usize,
    lapse: Pin<Box<Sleep>>,
}

impl Default for Linger {
    fn default() -> Self {
        Linger { until: Instant::now() + WITHIN, bytes_left: BYTES_MAX, lapse: Box::pin(sleep(SILENT_MAX)) }
    }
}

impl Linger {
    /// Ready when the client has ended its side, or a limit is reached.
    pub fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            if self.lapse.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut into = ReadBuf::new(&mut piece);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut into));
            let dropped = into.filled().len();
            if read.is_err() || dropped == 0 || dropped > self.bytes_left {
                return Poll::Ready(());
            }
            self.bytes_left -= dropped;
            let silent_until = Instant::now() + SILENT_MAX;
            self.lapse.as_mut().reset(silent_until.min(self.until));
        }
    }
}
