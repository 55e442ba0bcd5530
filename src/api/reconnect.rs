//! Reconnecting streams that cannot be served for the moment.
//!
//! A browser's `EventSource` gives up for good on any status but 200. So a client that reconnects to a stream, or
//! uses a ticket, which only browsers need, gets a temporary error inside a stream: the stream gives the reason and
//! the delay, and ends in a reset like every incomplete stream (decision 0032). A permanent error stays a status.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Request},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use futures_util::stream;

use super::{
    auth::ByTicket,
    peer::Peer,
    problem::RefusalNote,
    request::{is_resumed, wants_events},
    sse,
};
use crate::stream::render;

/// The delay between the last bytes and the abort, because a reset may overtake unsent bytes.
const FLUSH: Duration = Duration::from_millis(100);

/// Turns a temporary error into a short stream for clients that reconnect.
pub async fn put_off(request: Request, next: Next) -> Result<Response, Infallible> {
    let is_stream = wants_events(request.headers()) == Some(true);
    let is_browsers = request.extensions().get::<ByTicket>().is_some();
    let comes_back = is_stream && (is_browsers || is_resumed(&request));
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    let response = next.run(request).await;
    let refusal = response.extensions().get::<RefusalNote>().copied();
    let passes = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE
    );
    Ok(match refusal {
        Some(refusal) if comes_back && passes => later(refusal, peer),
        _ => response,
    })
}

fn later(RefusalNote { code, retry_after_s }: RefusalNote, peer: Option<Peer>) -> Response {
    let after = Duration::from_secs(retry_after_s.unwrap_or_default());
    let told = Bytes::from(render::put_off(code, after));
    let frames = stream::unfold((Some(told), peer), |(told, peer)| async {
        if let Some(told) = told {
            return Some((Ok(told), (None, peer)));
        }
        tokio::time::sleep(FLUSH).await;
        let peer = peer?;
        peer.reset();
        let why = io::Error::new(io::ErrorKind::ConnectionAborted, "this stream cannot be served now");
        Some((Err(why), (None, None)))
    });
    let mut response = sse::answer(Body::from_stream(frames));
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
