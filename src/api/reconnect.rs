//! Streams that are asked for again where they cannot be served for the moment.
//!
//! A browser's `EventSource` gives up for good on any status but 200. So whoever comes back to a stream, or comes with
//! a ticket, which only browsers need, is told of a reason that passes within a stream: one that says why and when to
//! come back, and ends in a reset as every stream does that is not whole (decision 0032). What does not pass stays
//! a status.

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

/// Between the last bytes and the abort: a reset may overtake what is not yet on its way.
const FLUSH: Duration = Duration::from_millis(100);

/// Puts off whoever comes back to a stream for a reason that passes.
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
