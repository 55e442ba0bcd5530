//! Telemetry: the log, traces and metrics of this process.
//!
//! Owns the log on stderr, the export of traces, and its end. [`metrics`] names the metrics, [`trace`] reads and
//! writes trace context, [`wishes`] reads the variables. Never delays work: a thread exports the spans, the last
//! flush takes at most [`FLUSH_MAX`], and an unreachable collector costs spans, never turns.

mod export;
pub mod metrics;
pub mod trace;
pub mod wishes;

use std::{
    borrow::Cow,
    io::{self, IsTerminal},
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tracing::{Dispatch, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::MakeExt,
    filter::{ParseError, Targets},
    fmt::format::debug_fn,
    layer::SubscriberExt,
    registry::LookupSpan,
};

pub use trace::{adopt, current_traceparent, new_traceparent, trace_id};

use crate::{
    config::{Config, LogFormat, kept},
    secret, text,
};
use wishes::Wishes;

/// Time limit of the last flush.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Keeps the export of traces alive. Dropping it exports the rest, blocking for at most 3 s, so drop it last.
#[derive(Debug)]
#[must_use = "traces end when it is dropped"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log` is not a valid filter.
    #[error("log: {0}")]
    Log(#[from] ParseError),
}

/// Starts the log, the metrics and, if a collector is configured, the traces of this process. `replica` is its
/// instance name in traces. A second call in one process leaves the first log in place.
///
/// # Errors
/// An invalid `log` filter.
pub fn init(config: &Config, replica: &str) -> Result<Telemetry, TelemetryError> {
    let variables = kept::variables();
    let get = |name: &str| {
        let found = variables.iter().find(|(known, _)| known == name)?;
        found.1.to_str().map(str::to_owned)
    };
    let wishes = Wishes::read(config.otlp_endpoint.as_deref(), &get);
    let (telemetry, dispatch) = build(config, &wishes, replica)?;
    metrics::install();
    if tracing::dispatcher::set_global_default(dispatch).is_err() {
        tracing::debug!("a log subscriber is set already");
    }
    Ok(telemetry)
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take()
            && let Err(why) = traces.shutdown_with_timeout(FLUSH_MAX)
        {
            tracing::warn!(%why, "the last traces were not exported");
        }
    }
}

fn build(config: &Config, wishes: &Wishes, replica: &str) -> Result<(Telemetry, Dispatch), TelemetryError> {
    // Warnings about traces are logged before the final subscriber exists.
    let told = lines(config.log_format).with_filter(filter(&config.log)?);
    let told = Dispatch::new(tracing_subscriber::registry().with(told));
    let traces = tracing::dispatcher::with_default(&told, || traces(wishes, replica));
    let spans = traces.as_ref().map(|provider| {
        // Our own spans only: spans of the exporter's client would be exported too, and so create more.
        let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(export::tracer(provider)).with_filter(ours)
    });
    let lines = lines(config.log_format).with_filter(filter(&config.log)?);
    let subscriber = tracing_subscriber::registry().with(spans).with(lines);
    Ok((Telemetry { traces }, Dispatch::new(subscriber)))
}

/// Starts the configured traces; logs each warning once.
fn traces(wishes: &Wishes, replica: &str) -> Option<SdkTracerProvider> {
    for warning in &wishes.warnings {
        tracing::warn!("{warning}");
    }
    let to = wishes.export.as_ref()?;
    match export::provider(to, wishes, replica) {
        Ok(provider) => {
            let (host, port) = (to.url.host_str().unwrap_or_default(), to.url.port_or_known_default());
            tracing::info!(host, port, protocol = to.protocol.name(), "traces are exported");
            Some(provider)
        }
        Err(why) => {
            tracing::warn!(%why, "no traces are exported");
            None
        }
    }
}

/// The log filter. Unless asked for, silences the driver's lines for each connection and statement during an
/// outage of Postgres: the store reports an outage in one line.
fn filter(log: &str) -> Result<EnvFilter, ParseError> {
    let mut filter = EnvFilter::try_new(log)?;
    if !log.contains("sqlx") {
        for quiet in ["sqlx::postgres::notice=off", "sqlx::query=error"] {
            filter = filter.add_directive(quiet.parse()?);
        }
    }
    Ok(filter)
}

/// The log on stderr; stdout carries the output of commands. An event is one line, and control characters from
/// workers and clients are escaped so that they cannot steer a terminal.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer();
    match format {
        LogFormat::Text => {
            let fields = debug_fn(|out, field, value| {
                let value = format!("{value:?}");
                let value = secret::hidden(&value);
                let value = text::visible_line(&value);
                if field.name() == "message" {
                    write!(out, "{value}")
                } else {
                    write!(out, "{field}={value}")
                }
            });
            let lines = lines.with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
            lines.fmt_fields(fields.delimited(" ")).boxed()
        }
        LogFormat::Json => {
            let lines = lines.with_writer(|| OneLine(io::stderr()));
            lines.json().flatten_event(true).with_current_span(false).boxed()
        }
    }
}

/// Writes each JSON event as one line for every reader, with secrets hidden. One event a call.
struct OneLine<W>(W);

impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let json = String::from_utf8_lossy(event);
        let json = json.strip_suffix('\n').unwrap_or(&json);
        let shown = without_secrets(json);
        self.0.write_all(format!("{}\n", text::one_line(&shown)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Hides secrets string by string, so that a match never spans two strings.
fn without_secrets(json: &str) -> Cow<'_, str> {
    if matches!(secret::hidden(json), Cow::Borrowed(_)) {
        return Cow::Borrowed(json);
    }
    match serde_json::from_str(json) {
        Ok(mut event) => {
            hide(&mut event);
            Cow::Owned(event.to_string())
        }
        Err(_) => secret::hidden(json),
    }
}

fn hide(value: &mut Value) {
    match value {
        Value::String(text) => *text = secret::hidden(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(fields) => fields.values_mut().for_each(hide),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
    };

    use super::*;

    /// Takes one HTTP request and answers 200. Returns its first line and its body.
    fn one_request(listener: &TcpListener) -> (String, Vec<u8>) {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        (first, body)
    }

    fn quiet() -> Config {
        Config { log: "off".to_owned(), ..Config::default() }
    }

    fn exporting_to(listener: &TcpListener) -> Wishes {
        Wishes::read(Some(&format!("http://{}", listener.local_addr().unwrap())), &|_| None)
    }

    #[test]
    fn spans_arrive_at_the_collector_in_the_trace_that_they_adopted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wishes = exporting_to(&listener);
        let collector = std::thread::spawn(move || one_request(&listener));
        let parent = new_traceparent();
        let (telemetry, dispatch) = build(&quiet(), &wishes, "rep_of_this_test").unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            let span = tracing::info_span!("a_turn_is_run");
            adopt(&span, &parent);
            let inside = span.in_scope(current_traceparent).unwrap();
            assert_eq!(trace_id(&inside), trace_id(&parent));
            assert_ne!(inside, parent, "the span is a child with an id of its own");
        });
        drop(telemetry);
        let (first, body) = collector.join().unwrap();
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        for text in ["a_turn_is_run", "rep_of_this_test"] {
            assert!(body.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_collector_that_never_answers_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (telemetry, dispatch) = build(&quiet(), &exporting_to(&listener), "r").unwrap();
        tracing::dispatcher::with_default(&dispatch, || drop(tracing::info_span!("lost")));
        let start = std::time::Instant::now();
        drop(telemetry);
        assert!(start.elapsed() < FLUSH_MAX * 3, "{:?}", start.elapsed());
    }

    #[test]
    fn without_a_collector_there_is_no_current_trace() {
        let (_telemetry, dispatch) = build(&quiet(), &Wishes::default(), "r").unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            let span = tracing::info_span!("a_turn_is_run");
            adopt(&span, &new_traceparent());
            assert_eq!(span.in_scope(current_traceparent), None);
        });
    }

    #[test]
    fn starting_twice_in_one_process_is_no_error_and_a_bad_filter_is() {
        let config = Config { log: "off".to_owned(), ..Config::default() };
        let _first = init(&config, "one").unwrap();
        let _second = init(&config, "two").unwrap();
        let config = Config { log: "lastword=loudly".to_owned(), ..config };
        assert!(init(&config, "three").unwrap_err().to_string().starts_with("log: "));
    }
}
