//! The end of a connection whose client still sends.
//!
//! A socket that is closed with something unread resets the connection, and a reset overtakes the answer: a client
//! that sends a large body would see a broken pipe where it was refused. So what is left of a body is read and
//! dropped after the answer, within bounds of bytes and time; then the connection ends all the same.

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

/// How much is read and dropped at most, in how long, and how long nothing may come.
const BYTES_MAX: usize = 64 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(30);
const SILENT_MAX: Duration = Duration::from_secs(2);
/// What is read at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// The rest of a body that is no longer than this comes mostly with the head: the connection may go on after it.
const SMALL: u64 = 16 * 1024;

/// Whether the newest request of a connection was answered before its body was read to the end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct LeftUnread(Arc<AtomicBool>);

impl LeftUnread {
    /// A body that is about to be read.
    pub fn watch(&self, body: Incoming) -> Watched {
        let is_unread = !body.is_end_stream();
        self.0.store(is_unread, Ordering::Release);
        Watched { body, left_unread: self.clone() }
    }

    /// Whether there is something left.
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A request's body that tells when all of it was read.
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

/// Whether the body that these headers announce may be small enough to be dropped within its connection.
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
    /// Ready once the client has ended its side, or as much was dropped as may be.
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
