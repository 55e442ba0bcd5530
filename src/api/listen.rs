//! The door itself: accepting connections, keeping them honest, and closing them hard when asked.
//!
//! A body can ask for a reset of its connection through [`Peer`]: a stream that must end early must
//! not look like one that ended well, and to an HTTP/1.0 proxy a plain close looks just so.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{Gateway, router};

/// Bytes that stay unacknowledged for so long end the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// A silent connection is probed after so long, every so often.
const SILENT_MAX: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// After the hard stop streams get so long to be reset.
const RESET_WITHIN: Duration = Duration::from_millis(500);

/// Answers requests until the hard stop. Once `closing` is cancelled it takes no more connections,
/// ends idle ones, and returns when the last has ended. During a drain that comes before, requests
/// are still answered.
///
/// # Errors
/// The listener cannot be used at all.
pub async fn serve(listener: TcpListener, gateway: Gateway, closing: CancellationToken) -> io::Result<()> {
    let door = Door { local: listener.local_addr()?, listener };
    let hard = gateway.supervisor.hard().clone();
    let service = router(gateway).into_make_service_with_connect_info::<Peer>();
    let closed = {
        let hard = hard.clone();
        async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = hard.cancelled() => {}
            }
        }
    };
    let cut_off = async {
        hard.cancelled().await;
        tokio::time::sleep(RESET_WITHIN).await;
    };
    tokio::select! {
        served = axum::serve(door, service).with_graceful_shutdown(closed) => served,
        () = cut_off => Ok(()),
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    is_reset: Arc<AtomicBool>,
}

impl Peer {
    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection ends in a reset when it is dropped next.
    pub fn reset(&self) {
        self.is_reset.store(true, Ordering::Release);
    }
}

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Peer {
        stream.io().peer.clone()
    }
}

/// The listener.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    local: SocketAddr,
}

impl Listener for Door {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Err(why) = keep_honest(&stream) {
                        tracing::debug!(%why, "a connection keeps the system's own settings");
                    }
                    let peer = Peer { address, is_reset: Arc::default() };
                    return (Wire { stream, peer }, address);
                }
                Err(why) => {
                    // Out of file descriptors, mostly: it passes, and a busy loop would not help.
                    tracing::warn!(%why, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// A frame leaves at once, and a client that vanished without a word is noticed.
fn keep_honest(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENT_MAX).with_interval(PROBE_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// A connection's bytes.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    peer: Peer,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.peer.is_reset.load(Ordering::Acquire) {
            // Closing with a linger of zero sends a reset.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
