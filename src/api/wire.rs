//! The bytes of a connection: reads, writes and the close.
//!
//! Watches for clients that take nothing ([`super::stall`]), reports activity to the connection table
//! ([`super::connected`]), and closes without losing a response to unread request bytes ([`super::linger`]).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    connected::Mark,
    linger::{LeftUnread, Linger},
    peer::Peer,
    stall::StallWatch,
};

/// The first bytes of an HTTP/2 client.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Unsent bytes per connection, in this process and in the kernel each. The log is read further only after the client
/// has taken some.
pub const UNSENT_MAX: u32 = 64 * 1024;

/// A connection's bytes.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    peer: Peer,
    mark: Mark,
    watch: StallWatch,
    left_unread: LeftUnread,
    /// Bytes read to detect the HTTP version, which must be read again.
    ahead: Vec<u8>,
    is_http2: bool,
    /// Set after the write side was shut down.
    linger: Option<Linger>,
}

impl Wire {
    /// The bytes of an accepted connection.
    pub fn new(stream: TcpStream, peer: Peer, mark: Mark, watch: StallWatch) -> Wire {
        let (left_unread, ahead, is_http2, linger) = Default::default();
        Wire { stream, peer, mark, watch, left_unread, ahead, is_http2, linger }
    }

    /// Tells whether the newest request was answered before its whole body was read.
    pub fn left_unread(&self) -> LeftUnread {
        self.left_unread.clone()
    }

    /// Whether the client begins with the HTTP/2 preface. Reads no more than the preface.
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
        if self.peer.is_reset() {
            // A close with a linger of zero sends a reset.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
        self.peer.ended();
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Wire { stream, watch, .. } = &mut *self;
        // hyper polls for reads all the time, to notice the end of the connection.
        if let Poll::Ready(why) = watch.poll(stream, cx) {
            self.peer.reset();
            tracing::info!(address = %self.peer.address(), %why, "a connection is closed");
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
            if is_heard_out || peer.is_reset() {
                return Poll::Ready(Ok(()));
            }
        }
        linger.get_or_insert_default().poll(stream, cx).map(Ok)
    }
}
