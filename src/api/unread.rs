//! Unread pages: responses that are rendered whole and stay in memory until the client has read them.
//!
//! Owns the limit of their bytes, in all and per token, and the time limit for reading a page: after that, the
//! connection is closed. Refuses to read the log for a token whose pages already fill its share. Event streams are
//! not rendered whole and have their own limits ([`super::wire`]).

use std::time::Duration;

use axum::{
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use tokio::sync::oneshot;

use super::{
    gateway::Gateway,
    peer::{Connection, Peer},
    problem::Problem,
    shares::Taken,
    who::Who,
};
use crate::task::TaskKind;

/// Responses up to this size fit into a connection's buffers and are not counted.
const SMALL: u64 = 64 * 1024;
/// The minimum time allowed for reading a page, and the slowest allowed rate in bytes per second.
const READ_WITHIN: Duration = Duration::from_secs(10);
const SLOWEST: u64 = 32 * 1024;

/// Counts large responses until they are read.
pub async fn counted(
    State(gateway): State<Gateway>,
    who: Who,
    Connection(peer): Connection,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let is_read = request.method() == Method::GET;
    let shares = &gateway.doors.shares;
    let response = next.run(request).await;
    let Some(size) = response.body().size_hint().exact().filter(|size| *size > SMALL) else {
        return Ok(response);
    };
    // A response to a write is always sent; a GET may be refused, since it can be repeated.
    let taken = if is_read { shares.page(who, size)? } else { shares.answer(who, size) };
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.map_err(|why| Problem::internal(&why))?;
    let (unread, read) = oneshot::channel();
    if let Some(peer) = peer {
        gateway.supervisor.spawn(TaskKind::Client, "pages", watch(gateway.clone(), peer, size, read));
    }
    let page = UnreadPage { bytes, _taken: taken, _unread: unread };
    Ok(Response::from_parts(parts, Body::from(Bytes::from_owner(page))))
}

/// A page until its client has read it.
struct UnreadPage {
    bytes: Bytes,
    _taken: Taken,
    /// Its drop tells the watching task that the page was read.
    _unread: oneshot::Sender<()>,
}

impl AsRef<[u8]> for UnreadPage {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Closes the connection of a client that takes too long to read a page.
async fn watch(gateway: Gateway, peer: Peer, size: u64, read: oneshot::Receiver<()>) {
    tokio::select! {
        _ = read => {}
        () = tokio::time::sleep(read_within(size)) => {
            tracing::info!(
                address = %peer.address(), size,
                "a response was not read in time; its connection is closed"
            );
            peer.cut_off();
        }
        () = gateway.supervisor.hard().cancelled() => {}
    }
}

fn read_within(size: u64) -> Duration {
    READ_WITHIN + Duration::from_millis(size * 1000 / SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_may_take_longer() {
        assert_eq!(read_within(0), READ_WITHIN);
        assert_eq!(read_within(1024 * 1024), Duration::from_secs(42));
    }
}
