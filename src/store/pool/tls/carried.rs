//! The way from the driver to a TLS connection: a socket of this process for each, that takes one caller.
//!
//! Owns the bytes between the two. The socket's name is random and in no directory (Linux' abstract
//! namespace), since an image may have no place to write; whoever else might find it is refused by its process id.
//! An end on one side is an end on the other within a second: a connection to a network that is cut must not
//! stay open for the quarter of an hour that its last bytes are repeated.

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

/// How long the driver may take to call: it does so at once.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long what is left may take to be sent after an end.
const END_MAX: Duration = Duration::from_secs(1);

/// A TLS connection that waits for its driver.
#[derive(Debug)]
pub(in crate::store::pool) struct Carried {
    directory: PathBuf,
    fault: Arc<OnceLock<(Denial, String)>>,
}

impl Carried {
    /// A way to this connection.
    pub(super) fn new(stream: TlsStream<TcpStream>) -> io::Result<Carried> {
        // The driver appends `/.s.PGSQL.` and the port, which it is told to be 1.
        let directory = PathBuf::from(format!("\0lastword-{:032x}", rand::random::<u128>()));
        let listener = UnixListener::bind(directory.join(".s.PGSQL.1"))?;
        let fault = Arc::new(OnceLock::new());
        let slot = fault.clone();
        // It ends with either side, and nobody waits for it: no task of the replica.
        #[allow(clippy::disallowed_methods, reason = "a part of one connection, which has its own end")]
        tokio::spawn(async move {
            if let Some(driver) = accept(listener).await {
                carry(driver, stream, &slot).await;
            }
        });
        Ok(Carried { directory, fault })
    }

    /// Where the driver finds it: a directory of sockets, and a port.
    pub(in crate::store::pool) fn place(&self) -> (&std::path::Path, u16) {
        (&self.directory, 1)
    }

    /// Why TLS ended after its handshake: in TLS 1.3 a server judges the client's certificate after it.
    pub(in crate::store::pool) fn fault(&self) -> Option<(Denial, String)> {
        self.fault.get().cloned()
    }
}

/// The driver; nobody else is let in.
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

/// The first end of the two is that of both.
async fn carry(driver: UnixStream, server: TlsStream<TcpStream>, slot: &OnceLock<(Denial, String)>) {
    let (mut from_driver, mut to_driver) = driver.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::select! {
        _ = tokio::io::copy(&mut from_driver, &mut to_server) => {
            let _ = timeout(END_MAX, to_server.shutdown()).await;
        }
        ended = tokio::io::copy(&mut from_server, &mut to_driver) => {
            // Before the driver sees the end: it is asked for then.
            if let Err(why) = ended
                && let TlsFault::Denied(denial, why) = fault(why)
            {
                let _ = slot.set((denial, why));
            }
            let _ = timeout(END_MAX, to_driver.shutdown()).await;
        }
    }
}
