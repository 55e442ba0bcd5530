//! Clients that read nothing: who is alive and may take its time, and who is gone.
//!
//! The system ends a connection whose bytes stay unacknowledged for [`UNACKNOWLEDGED_MAX`]. It counts so too where the
//! client has no room for them and says so again and again: a browser's tab that sleeps, a debugger. Such a client is
//! alive. So as long as it answers, the system's limit is moved ahead of it, a little at a time, up to
//! `stream_stall_max`; where it falls silent the limit stays, and ends the connection as soon as any other.

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

/// Bytes that stay unacknowledged for so long end the connection.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// Whoever was heard within this is alive. The system asks as often as that, since it asks once more before its limit.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How often a connection with something unacknowledged is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How a connection stands, as far as its system tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketState {
    /// Bytes or segments that the client has not taken.
    waiting: u32,
    /// Bytes that it has taken.
    taken: u64,
    /// How long ago it was heard last, whatever it said.
    silent_for: Duration,
}

/// Watches one connection while something waits for its client.
#[derive(Debug)]
pub struct StallWatch {
    stall_max: Duration,
    look: Option<Pin<Box<Sleep>>>,
    /// Since when the client has taken nothing, and how much it had taken.
    still: Option<(Instant, u64)>,
    /// Whether the system's limit is not the usual one.
    is_moved: bool,
}

impl StallWatch {
    /// A client may read nothing for so long.
    pub fn new(stall_max: Duration) -> StallWatch {
        StallWatch { stall_max, look: None, still: None, is_moved: false }
    }

    /// Something was written: whether it is taken is looked at from now on.
    pub fn wrote(&mut self) {
        if self.look.is_none() {
            self.look = Some(Box::pin(sleep(self.look_every())));
        }
    }

    /// Ready with an error once the client is to be given up. Called whenever anything is asked of the connection.
    pub fn poll(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(look) = &mut self.look {
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.look = None;
            let now = Instant::now();
            match standing(stream).map(|standing| self.judge(standing, now)) {
                Some(StallVerdict::Stalled) => {
                    let why = "the client has read nothing for as long as it may";
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
        // The look before this one may have been the last before it stood still.
        let ahead = still_for + self.look_every() + HEARD_WITHIN;
        StallVerdict::Waiting((silent_for < HEARD_WITHIN).then_some(ahead.max(UNACKNOWLEDGED_MAX)))
    }

    /// Sets the system's limit, where one is given and it is not that already.
    fn limit(&mut self, stream: &TcpStream, limit: Option<Duration>) {
        let Some(limit) = limit else { return };
        let is_moved = limit > UNACKNOWLEDGED_MAX;
        if (is_moved || self.is_moved) && set_unacknowledged_max(stream, limit).is_ok() {
            self.is_moved = is_moved;
        }
    }
}

/// What a look has found.
#[derive(Debug, PartialEq, Eq)]
enum StallVerdict {
    /// Nothing waits.
    Clear,
    /// Something does; the system's limit is this from now on, or stays as it is.
    Waiting(Option<Duration>),
    /// It has waited for too long.
    Stalled,
}

/// Ends the connection where bytes stay unacknowledged for so long.
///
/// # Errors
/// The system does not take it.
pub fn set_unacknowledged_max(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(limit))?;
    Ok(())
}

/// `None` where the system does not tell.
#[cfg(target_os = "linux")]
fn standing(stream: &TcpStream) -> Option<SocketState> {
    use std::os::fd::AsRawFd as _;

    use nix::libc;

    // Places of `struct tcp_info`, which only grows.
    const UNACKED: usize = 24;
    const LAST_ACK_RECV: usize = 56;
    const BYTES_ACKED: usize = 120;
    const NOTSENT_BYTES: usize = 144;
    let mut info = [0_u8; 160];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    #[allow(unsafe_code, reason = "no safe form of this option is to be had")]
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the system writes `length` bytes at most.
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
