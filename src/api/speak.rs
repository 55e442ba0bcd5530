//! What is spoken on a connection: HTTP/1.1, or HTTP/2 where the client begins with its preface.
//!
//! There is no TLS here to agree on one within, and no upgrade: cloud balancers and service meshes know which they want.
//! Owns the bounds of HTTP/2: how many streams, how long headers, how much is buffered, how many resets.

use std::{future::Future, pin::Pin, pin::pin};

use axum::Router;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::{
    connected::Mark,
    exchange::{Streams, answer},
    peer::Peer,
    wire::{UNSENT_MAX, Wire},
};

/// Streams of one connection at a time. More wait at the client.
const STREAMS_MAX: u32 = 100;
/// Bytes of one request's headers.
const HEADERS_MAX: u32 = 16 * 1024;
/// What a client may send ahead of what is read: of one request, and of all on its connection.
const AHEAD_OF_STREAM: u32 = 64 * 1024;
const AHEAD: u32 = 128 * 1024;
/// Streams that were reset before they were looked at, and those that had to be reset: with more the connection ends.
const RESET_EARLY_MAX: usize = 20;
const RESET_MAX: usize = 128;

/// Speaks on a connection to its end. Once `closing` is cancelled it ends with the answers that are under way.
pub async fn speak(
    mut wire: Wire,
    (service, peer): (Router, Peer),
    mark: Mark,
    streams: Streams,
    closing: CancellationToken,
) -> hyper::Result<()> {
    let is_http2 = tokio::select! {
        is_http2 = wire.begins_with_preface() => is_http2,
        // Nothing was asked yet.
        () = closing.cancelled() => return Ok(()),
    };
    if is_http2 {
        mark.speaks_in_frames();
        let mut http = http2::Builder::new(streams.clone());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_MAX)
            .initial_stream_window_size(AHEAD_OF_STREAM)
            .initial_connection_window_size(AHEAD)
            .max_send_buf_size(UNSENT_MAX as usize)
            .max_pending_accept_reset_streams(RESET_EARLY_MAX)
            .max_local_error_reset_streams(RESET_MAX);
        let service = service_fn(move |request| streams.answer(request, (&service, &peer), &mark));
        let connection = http.serve_connection(TokioIo::new(wire), service);
        return to_its_end(connection, closing, |connection| connection.graceful_shutdown()).await;
    }
    let left_unread = wire.left_unread();
    let service = service_fn(move |request| answer(request, (&service, &peer), &mark, &left_unread));
    let mut http = http1::Builder::new();
    // How long a head may take is the admission's: this limit would bind idle connections too.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(UNSENT_MAX as usize);
    let connection = http.serve_connection(TokioIo::new(wire), service);
    to_its_end(connection, closing, |connection| connection.graceful_shutdown()).await
}

/// A connection to its end, which is prepared once `closing` is cancelled.
async fn to_its_end<C: Future>(
    connection: C,
    closing: CancellationToken,
    end: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = closing.cancelled() => {}
    }
    end(connection.as_mut());
    connection.await
}
