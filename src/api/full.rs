//! Responses to connections above the limit.
//!
//! Health checks stay truthful: `/livez` is answered, because a full replica must not be restarted. A browser that
//! reconnects to a stream gets the refusal inside a stream, because an error status would end its retries
//! ([`super::reconnect`]).

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{connected::ConnectionRefused, cors::Origins, request::LAST_EVENT_ID, wire::PREFACE};
use crate::{
    stream::render::{self, MEDIA_TYPE},
    telemetry::metrics,
};

/// Timeout for reading and answering a refused connection.
const WITHIN: Duration = Duration::from_millis(500);
/// Bytes of a head that are read.
const HEAD_BYTES: usize = 8 * 1024;
const CODE: &str = "too_many_connections";

const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 207\r\n\r\n\
    {\"type\":\"urn:lastword:problem:too_many_connections\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"code\":\"too_many_connections\",\"detail\":\"This replica has its maximum number of connections.\",\
    \"retry_after_s\":1}\n";
const ALIVE: &str = "HTTP/1.1 200 OK\r\n\
    content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: 3\r\n\r\nok\n";

/// An empty SETTINGS frame and a GOAWAY: no request was processed, so all of them can be repeated elsewhere.
const GOAWAY: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Refuses a connection above the limit. A probe of `/livez` gets 200.
pub async fn refuse(mut stream: TcpStream, why: ConnectionRefused, origins: &Origins) {
    metrics::connections_cut(why.as_str());
    let _ = timeout(WITHIN, async {
        let mut head = [0; HEAD_BYTES];
        let read = timeout(WITHIN / 2, stream.read(&mut head)).await;
        let read = read.ok().and_then(Result::ok).unwrap_or(0);
        let said = head.get(..read).unwrap_or_default();
        match said.starts_with(PREFACE) {
            true => stream.write_all(&GOAWAY).await?,
            false => stream.write_all(answer(&String::from_utf8_lossy(said), origins).as_bytes()).await?,
        }
        stream.shutdown().await?;
        // Unread bytes would turn the close into a reset, which may overtake the answer.
        while stream.read(&mut head).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
}

fn answer(head: &str, origins: &Origins) -> String {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let header = |wanted: &str| {
        let named = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        named.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    if first.starts_with("GET /livez ") {
        return ALIVE.to_owned();
    }
    let is_stream = header("accept").is_some_and(|accept| accept.contains(MEDIA_TYPE));
    let asks_again = header("last-event-id").is_some_and(|id| !id.is_empty())
        || [LAST_EVENT_ID, "ticket"].iter().any(|name| first.contains(&format!("{name}=")));
    if !(first.starts_with("GET /v1/") && first.contains("/events") && is_stream && asks_again) {
        return FULL.to_owned();
    }
    let origin = header("origin").filter(|origin| origins.names(origin));
    let origin = origin.map(|origin| format!("access-control-allow-origin: {origin}\r\nvary: origin\r\n"));
    // The length exceeds the body, because an incomplete stream must not end cleanly.
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {MEDIA_TYPE}\r\ncache-control: no-store, no-transform\r\n{}retry-after: 1\r\n\
         connection: close\r\ncontent-length: 1048576\r\n\r\n{}",
        origin.unwrap_or_default(),
        render::put_off(CODE, Duration::from_secs(1)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_browser_that_comes_back_to_a_stream_is_told_within_one() {
        let cors_origins = vec!["https://chat.example".to_owned()];
        let origins = Origins::of(&Config { cors_origins, ..Config::default() });
        let events = "GET /v1/turns/turn_1/events";
        for (head, status, allowed) in [
            (format!("{events} HTTP/1.1\r\naccept: text/event-stream\r\nLast-Event-ID: 3\r\n"), 200, false),
            (format!("{events}?lastEventId=3 HTTP/1.1\r\naccept: text/event-stream\r\n"), 200, false),
            (
                format!(
                    "{events}?ticket=lws_x HTTP/1.1\r\nAccept: text/event-stream\r\norigin: https://chat.example\r\n"
                ),
                200,
                true,
            ),
            (
                format!(
                    "{events}?ticket=x HTTP/1.1\r\naccept: text/event-stream\r\norigin: https://evil.example\r\n"
                ),
                200,
                false,
            ),
            (format!("{events} HTTP/1.1\r\naccept: text/event-stream\r\n"), 503, false),
            (format!("{events} HTTP/1.1\r\naccept: application/json\r\nlast-event-id: 3\r\n"), 503, false),
            ("GET /v1/turns HTTP/1.1\r\n".to_owned(), 503, false),
            ("GET /livez HTTP/1.1\r\n".to_owned(), 200, false),
            (String::new(), 503, false),
        ] {
            let answer = answer(&head, &origins);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
            assert_eq!(answer.contains("access-control-allow-origin"), allowed, "{head}: {answer}");
        }
    }

    #[test]
    fn a_refusal_is_whole() {
        for answer in [FULL, ALIVE] {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            assert_eq!(length, body.len().to_string());
        }
        let problem: serde_json::Value =
            serde_json::from_str(FULL.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(problem["code"], "too_many_connections");
    }
}
