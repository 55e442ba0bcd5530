//! The connection from the driver to a TLS stream: one private Unix socket each, which accepts one caller.
//!
//! Owns the bytes between the two. The socket has a random name in Linux' abstract namespace, since an image may have
//! no writable directory; a caller of another process is rejected by its process id. If one side closes, the other
//! closes within 1 s: on a cut network the kernel would otherwise retransmit for about 15 minutes.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UnixListener, UnixStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::fault::{TlsFault, fault};
use crate::store::pool::denial::Denial;

/// How long the driver may take to connect; normally it connects at once.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long the remaining bytes may take after one side has closed.
const END_MAX: Duration = Duration::from_secs(1);

/// A TLS stream that waits for its driver.
#[derive(Debug)]
pub(in crate::store::pool) struct Carried {
    directory: PathBuf,
    fault: Arc<OnceLock<(Denial, String)>>,
}

impl Carried {
    /// Opens a socket for this stream.
    pub(super) fn new(stream: TlsStream<TcpStream>) -> io::Result<Carried> {
        // The driver appends `/.s.PGSQL.` and the port, here 1.
        let directory = PathBuf::from(format!("\0lastword-{:032x}", rand::random::<u128>()));
        let listener = UnixListener::bind(directory.join(".s.PGSQL.1"))?;
        let fault = Arc::new(OnceLock::new());
        let slot = fault.clone();
        // Not a task of the supervisor: it ends with either side, and nobody has to wait for it.
        #[allow(clippy::disallowed_methods, reason = "a part of one connection, which has its own end")]
        tokio::spawn(async move {
            if let Some(driver) = accept(listener).await {
                carry(driver, stream, &slot).await;
            }
        });
        Ok(Carried { directory, fault })
    }

    /// The driver's address of the socket: a directory and a port.
    pub(in crate::store::pool) fn place(&self) -> (&std::path::Path, u16) {
        (&self.directory, 1)
    }

    /// Why TLS failed after the handshake: in TLS 1.3 a server rejects the client's certificate only then.
    pub(in crate::store::pool) fn fault(&self) -> Option<(Denial, String)> {
        self.fault.get().cloned()
    }
}

/// Waits for the driver; rejects other processes.
async fn accept(listener: UnixListener) -> Option<UnixStream> {
    timeout(CALL_MAX, async {
        loop {
            let (caller, _) = listener.accept().await.ok()?;
            let caller_pid = caller.peer_cred().ok()?.pid();
            if caller_pid.and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id()) {
                return Some(caller);
            }
        }
    })
    .await
    .ok()?
}

/// Copies in both directions until either side closes.
async fn carry(driver: UnixStream, server: TlsStream<TcpStream>, slot: &OnceLock<(Denial, String)>) {
    let (mut from_driver, mut to_driver) = driver.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::select! {
        _ = tokio::io::copy(&mut from_driver, &mut to_server) => {
            let _ = timeout(END_MAX, to_server.shutdown()).await;
        }
        ended = tokio::io::copy(&mut from_server, &mut to_driver) => {
            // Before the driver sees the close, since it asks for the fault then.
            if let Err(why) = ended
                && let TlsFault::Denied(denial, why) = fault(why)
            {
                let _ = slot.set((denial, why));
            }
            let _ = timeout(END_MAX, to_driver.shutdown()).await;
        }
    }
}
