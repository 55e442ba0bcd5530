//! The HTTP version of a connection: HTTP/1.1, or HTTP/2 if the client begins with its preface.
//!
//! There is no TLS to negotiate the version with, and no upgrade: load balancers and service meshes know which
//! version they want. Owns the limits of HTTP/2: streams, header size, buffers and resets.

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

/// Concurrent streams per connection. The client queues further requests.
const STREAMS_MAX: u32 = 100;
/// Bytes of headers per request.
const HEADERS_MAX: u32 = 16 * 1024;
/// Receive windows: bytes that a client may send ahead, per request and per connection.
const AHEAD_OF_STREAM: u32 = 64 * 1024;
const AHEAD: u32 = 128 * 1024;
/// Streams reset before they were processed, and streams that this side had to reset. Above either limit, the
/// connection ends.
const RESET_EARLY_MAX: usize = 20;
const RESET_MAX: usize = 128;

/// Serves a connection to its end. Once `closing` is cancelled, the connection ends after the responses under way.
pub async fn speak(
    mut wire: Wire,
    (service, peer): (Router, Peer),
    mark: Mark,
    streams: Streams,
    closing: CancellationToken,
) -> hyper::Result<()> {
    let is_http2 = tokio::select! {
        is_http2 = wire.begins_with_preface() => is_http2,
        // There is no request yet.
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
    // `super::connected` has the timeout of a head: hyper's would also apply to idle connections.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(UNSENT_MAX as usize);
    let connection = http.serve_connection(TokioIo::new(wire), service);
    to_its_end(connection, closing, |connection| connection.graceful_shutdown()).await
}

/// Runs a connection to its end, and calls `end` once `closing` is cancelled.
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
