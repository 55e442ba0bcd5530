//! An event stream as an HTTP body.
//!
//! Keeps the rule that a body ends cleanly only after the terminal event. All other ends are a reset of the
//! connection, because most client libraries take a clean end for success.

use std::io;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::stream;

use super::{
    accept::CancelOnDrop,
    gateway::Gateway,
    peer::{Connection, Peer},
    problem::Problem,
    shares::Taken,
    who::Who,
};
use crate::{
    event::{Kind, SharedEvent},
    stream::{EventReader, Feed, StreamStep, Telling, render},
    telemetry::metrics,
};

/// One of this replica's limited number of streams, and the connection that carries it.
#[derive(Debug)]
pub struct StreamSlot {
    /// Released when the stream ends.
    _taken: Taken,
    peer: Option<Peer>,
}

impl StreamSlot {
    /// Takes a slot: 503 if the limit is reached, 429 if the caller's share is exhausted. Take the slot before the
    /// turn is accepted.
    pub fn take(gateway: &Gateway, who: Who, connection: Connection) -> Result<StreamSlot, Problem> {
        Ok(StreamSlot { _taken: gateway.doors.shares.stream(who)?, peer: connection.0 })
    }
}

struct Serving {
    feed: Feed,
    /// Declared before `slot`, so dropped first: the cancel has started when the slot becomes free.
    guard: CancelOnDrop,
    slot: StreamSlot,
    accepted_at: Option<chrono::DateTime<chrono::Utc>>,
    is_measured: bool,
    /// Counts the stream as open until dropped.
    _open: metrics::OpenStream,
}

/// A response with the reader's event stream. `guard` cancels the turn if the client disconnects first. With
/// `is_first`, the time to the turn's first event is measured.
pub fn response(
    gateway: &Gateway,
    stream: (EventReader, Telling),
    slot: StreamSlot,
    guard: CancelOnDrop,
    is_first: bool,
) -> Response {
    // Boxed: the body reserves space for this value three times.
    let serving = Box::new(Serving {
        feed: Feed::new(&gateway.store, stream, gateway.config.keep_alive.0, &gateway.supervisor),
        slot,
        guard,
        accepted_at: None,
        is_measured: !is_first,
        _open: metrics::streams_open(),
    });
    let body = stream::unfold(Some(serving), |serving| async {
        let mut serving = serving?;
        match serving.next().await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some(serving))),
            Some(Err(why)) => Some((Err(why), None)),
            None => None,
        }
    });
    answer(Body::from_stream(body))
}

/// A response with an event stream as its body.
pub fn answer(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, render::MEDIA_TYPE),
        // no-transform: a compressing proxy would buffer the stream until its end.
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Serving {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.feed.next().await {
            StreamStep::Bytes(text, events) => {
                self.measure(&events);
                if events.last().is_some_and(|event| event.kind.is_terminal()) {
                    self.guard.disarm();
                }
                Some(Ok(text.into()))
            }
            StreamStep::Ended => None,
            StreamStep::LetGo => {
                self.guard.disarm();
                Some(Err(self.abort("this replica closes its streams")))
            }
            StreamStep::Broken(why) => {
                tracing::error!(error = %why, "a stream was aborted");
                self.guard.disarm();
                Some(Err(self.abort("the log can no longer be read")))
            }
        }
    }

    fn abort(&self, why: &'static str) -> io::Error {
        if let Some(peer) = &self.slot.peer {
            peer.reset();
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, why)
    }

    fn measure(&mut self, events: &[SharedEvent]) {
        if self.is_measured {
            return;
        }
        for event in events {
            match event.kind {
                Kind::Accepted => self.accepted_at = Some(event.at),
                Kind::Started => {}
                // Turns that end without an event of a worker have no such time.
                Kind::Failed | Kind::Cancelled => self.is_measured = true,
                _ if self.is_measured => return,
                _ => {
                    let now = self.feed.store().clock().now();
                    let waited = self.accepted_at.and_then(|at| (now - at).to_std().ok());
                    metrics::time_to_first_event(waited.unwrap_or_default());
                    self.is_measured = true;
                    return;
                }
            }
        }
    }
}
