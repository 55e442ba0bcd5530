//! Clients that read nothing: a slow client that is alive may take its time, a dead one is disconnected.
//!
//! The kernel closes a connection whose bytes stay unacknowledged for [`UNACKNOWLEDGED_MAX`]. This also hits a client
//! that keeps answering with a zero receive window, such as a sleeping browser tab or a program in a debugger. So
//! while a client answers, the kernel's timeout is moved ahead in small steps, up to `stream_stall_max`. Once the
//! client falls silent, the timeout stays where it is and closes the connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// The kernel's timeout for unacknowledged bytes (`TCP_USER_TIMEOUT`).
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// A client heard within this time is alive. The kernel probes at least this often: it sends one more probe before
/// its timeout.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How often a connection with unacknowledged bytes is checked.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The state of a connection, as reported by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketState {
    /// Bytes or segments that the client has not acknowledged.
    waiting: u32,
    /// Bytes that the client has acknowledged.
    taken: u64,
    /// The time since anything was last heard from the client.
    silent_for: Duration,
}

/// Watches one connection while bytes wait for its client.
#[derive(Debug)]
pub struct StallWatch {
    stall_max: Duration,
    look: Option<Pin<Box<Sleep>>>,
    /// Since when the client has taken nothing, and the bytes taken until then.
    still: Option<(Instant, u64)>,
    /// Whether the kernel's timeout differs from [`UNACKNOWLEDGED_MAX`].
    is_moved: bool,
}

impl StallWatch {
    /// A watch for clients that may read nothing for `stall_max`.
    pub fn new(stall_max: Duration) -> StallWatch {
        StallWatch { stall_max, look: None, still: None, is_moved: false }
    }

    /// Call this after a write: starts the checks.
    pub fn wrote(&mut self) {
        if self.look.is_none() {
            self.look = Some(Box::pin(sleep(self.look_every())));
        }
    }

    /// Ready with an error once the client must be disconnected. Called on every read of the connection.
    pub fn poll(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(look) = &mut self.look {
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.look = None;
            let now = Instant::now();
            match standing(stream).map(|standing| self.judge(standing, now)) {
                Some(StallVerdict::Stalled) => {
                    let why = "the client has read nothing for too long";
                    return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Some(StallVerdict::Waiting(limit)) => {
                    self.limit(stream, limit);
                    self.wrote();
                }
                Some(StallVerdict::Clear) | None => self.limit(stream, Some(UNACKNOWLEDGED_MAX)),
            }
        }
        Poll::Pending
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY.min(self.stall_max / 4)
    }

    fn judge(
        &mut self,
        SocketState { waiting, taken, silent_for }: SocketState,
        now: Instant,
    ) -> StallVerdict {
        if waiting == 0 {
            self.still = None;
            return StallVerdict::Clear;
        }
        let since = match self.still {
            Some((since, before)) if before == taken => since,
            _ => now,
        };
        self.still = Some((since, taken));
        let still_for = now - since;
        if still_for >= self.stall_max {
            return StallVerdict::Stalled;
        }
        // The client may have stopped just after the previous check, so one interval is added.
        let ahead = still_for + self.look_every() + HEARD_WITHIN;
        StallVerdict::Waiting((silent_for < HEARD_WITHIN).then_some(ahead.max(UNACKNOWLEDGED_MAX)))
    }

    /// Sets the kernel's timeout, if one is given and differs from the current one.
    fn limit(&mut self, stream: &TcpStream, limit: Option<Duration>) {
        let Some(limit) = limit else { return };
        let is_moved = limit > UNACKNOWLEDGED_MAX;
        if (is_moved || self.is_moved) && set_unacknowledged_max(stream, limit).is_ok() {
            self.is_moved = is_moved;
        }
    }
}

/// The result of a check.
#[derive(Debug, PartialEq, Eq)]
enum StallVerdict {
    /// Nothing waits.
    Clear,
    /// Bytes wait. The kernel's timeout becomes this value, or stays as it is.
    Waiting(Option<Duration>),
    /// Bytes have waited for too long.
    Stalled,
}

/// Sets the kernel's timeout for unacknowledged bytes. Does nothing on systems other than Linux.
///
/// # Errors
/// The kernel refuses the option.
pub fn set_unacknowledged_max(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(limit))?;
    Ok(())
}

/// The state of a connection; `None` if the kernel does not report it.
#[cfg(target_os = "linux")]
fn standing(stream: &TcpStream) -> Option<SocketState> {
    use std::os::fd::AsRawFd as _;

    use nix::libc;

    // Offsets in `struct tcp_info`, which only grows at its end.
    const UNACKED: usize = 24;
    const LAST_ACK_RECV: usize = 56;
    const BYTES_ACKED: usize = 120;
    const NOTSENT_BYTES: usize = 144;
    let mut info = [0_u8; 160];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    #[allow(unsafe_code, reason = "no safe form of this option is to be had")]
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the kernel writes at most `length` bytes.
    let read = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if read != 0 || (length as usize) < NOTSENT_BYTES + 4 {
        return None;
    }
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let taken = u64::from_ne_bytes(info.get(BYTES_ACKED..BYTES_ACKED + 8)?.try_into().ok()?);
    let waiting = word(UNACKED)?.saturating_add(word(NOTSENT_BYTES)?);
    Some(SocketState { waiting, taken, silent_for: Duration::from_millis(word(LAST_ACK_RECV)?.into()) })
}

#[cfg(not(target_os = "linux"))]
fn standing(_: &TcpStream) -> Option<SocketState> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standing(waiting: u32, taken: u64, silent_s: u32) -> SocketState {
        SocketState { waiting, taken, silent_for: silent_s * SECOND }
    }

    #[test]
    fn whoever_answers_has_time_and_whoever_is_silent_has_no_more() {
        let (mut watch, began) = (StallWatch::new(600 * SECOND), Instant::now());
        for (at, standing, verdict) in [
            (0, standing(5, 100, 0), StallVerdict::Waiting(Some(30 * SECOND))),
            (60, standing(5, 100, 10), StallVerdict::Waiting(Some(78 * SECOND))),
            (63, standing(5, 100, 16), StallVerdict::Waiting(None)),
            (599, standing(5, 100, 1), StallVerdict::Waiting(Some(617 * SECOND))),
            (600, standing(5, 100, 1), StallVerdict::Stalled),
            (601, standing(5, 101, 1), StallVerdict::Waiting(Some(30 * SECOND))),
            (1200, standing(5, 101, 1), StallVerdict::Waiting(Some(617 * SECOND))),
            (1200, standing(0, 106, 1), StallVerdict::Clear),
            (1900, standing(5, 106, 1), StallVerdict::Waiting(Some(30 * SECOND))),
        ] {
            assert_eq!(watch.judge(standing, began + at * SECOND), verdict, "after {at} s");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_tells_what_waits_for_a_client_that_does_not_read() {
        use tokio::net::TcpListener;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(super::standing(&server).unwrap().waiting, 0);
        while server.try_write(&[0; 64 * 1024]).is_ok() {}
        let full = super::standing(&server).unwrap();
        assert!(full.waiting > 0 && full.silent_for < 5 * SECOND, "{full:?}");
        drop(client);
    }
}
