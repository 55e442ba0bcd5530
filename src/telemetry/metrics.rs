//! Metrics: every metric of this program, with its unit and meaning.
//!
//! Owns the names (except late output, which is the host's), and the recorder behind `/metrics`. Label values come
//! from bounded sets only: agents, codes, routes, reasons; never ids.

use std::{sync::OnceLock, time::Duration};

use metrics::{Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{event::Kind, host::LATE_OUTPUT};

use MetricShape::{Counter, Gauge, Histogram};

enum MetricShape {
    Counter,
    Gauge,
    Histogram,
}

/// Name, shape, unit, meaning.
type Metric = (&'static str, MetricShape, Unit, &'static str);

/// One row a metric: name, shape, unit, meaning.
macro_rules! metrics {
    ($($(#[$doc:meta])* $vis:vis $metric:ident = $name:literal, $shape:ident, $unit:ident, $tells:literal;)*) => {
        $($(#[$doc])* $vis const $metric: &str = $name;)*

        const METRICS: [Metric; 30] = [
            (LATE_OUTPUT, Counter, Unit::Count, "Messages of workers that came after their turn's last word."),
            $(($metric, $shape, Unit::$unit, $tells),)*
        ];
    };
}

metrics! {
    TURNS_ACCEPTED = "lastword_turns_accepted_total", Counter, Count, "Turns accepted by this replica.";
    LAST_WORDS = "lastword_last_words_total", Counter, Count,
        "Last words written by this replica, also for turns of others.";
    INFLIGHT = "lastword_inflight", Gauge, Count, "Turns without a last word, in the whole installation.";
    QUEUED = "lastword_queued", Gauge, Count, "Turns that no replica has claimed yet, in the whole installation.";
    OVERDUE = "lastword_overdue", Gauge, Count,
        "Turns past their deadline without a last word, in the whole installation. Should be 0.";
    LEASES_LOST = "lastword_leases_lost_total", Counter, Count,
        "Writes refused because another replica holds the turn now.";
    VERDICTS = "lastword_verdicts_total", Counter, Count, "Other replicas that this replica judged lost.";
    REWOUND_TURNS = "lastword_rewound_turns_total", Counter, Count,
        "Turns of which the database lost commits, reported first by this replica.";
    REWOUND_EVENTS = "lastword_rewound_events_total", Counter, Count,
        "Committed events that the database lost.";
    UNRECONCILED = "lastword_unreconciled_replicas_total", Counter, Count,
        "Replicas lost together with a primary: their last claims are unknown.";
    REQUEUED = "lastword_requeued_total", Counter, Count,
        "Turns put back into the queue for another attempt.";
    QUEUE_WAIT = "lastword_queue_wait_seconds", Histogram, Seconds,
        "Time from a turn's place at the head of its conversation to its claim.";
    TIME_TO_FIRST_EVENT = "lastword_time_to_first_event_seconds", Histogram, Seconds,
        "Time from acceptance to the worker's first event.";
    EVENTS_APPENDED = "lastword_events_appended_total", Counter, Count, "Events appended by this replica.";
    APPEND_BATCH = "lastword_append_batch_events", Histogram, Count, "Events in one flush.";
    /// Rings of the doorbell, as `/metrics` names them.
    pub DOORBELL_RINGS = "lastword_doorbell_rings_total", Counter, Count, "Rings of the doorbell sent.";
    DOORBELL_ROUND_TRIP = "lastword_doorbell_round_trip_seconds", Histogram, Seconds,
        "Time from a ring sent to the same ring heard.";
    BOUND_USED = "lastword_bound_used", Gauge, Count, "How much of a bound of this replica is in use; the label names the bound.";
    BOUND_MAX = "lastword_bound_max", Gauge, Count, "The bound itself: requests and work beyond the bound are refused or wait.";
    CONNECTIONS_CUT = "lastword_connections_cut_total", Counter, Count,
        "Connections that were refused, or closed while idle to make room for others.";
    CLAIMS_PAUSED = "lastword_claims_paused", Gauge, Count,
        "1 while this replica claims nothing because it lacks the resources to start a worker.";
    STREAMS_OPEN = "lastword_streams_open", Gauge, Count, "Event streams that clients hold open.";
    WORKERS = "lastword_workers", Gauge, Count, "Worker processes of this replica.";
    WORKER_EXITS = "lastword_worker_exits_total", Counter, Count, "Workers that ended.";
    DB_ERRORS = "lastword_db_errors_total", Counter, Count, "Statements that Postgres did not carry out.";
    BLOCKERS = "lastword_blocking_sessions_total", Counter, Count,
        "Other database sessions whose locks made writes wait; each counted once a minute.";
    HTTP_REQUESTS = "lastword_http_requests_total", Counter, Count, "Requests answered.";
    AUTH_FAILURES = "lastword_auth_failures_total", Counter, Count,
        "Requests refused for an unknown token.";
    HTTP_SECONDS = "lastword_http_request_duration_seconds", Histogram, Seconds,
        "Time from a request to the head of its response.";
}

/// Bucket bounds in seconds: from a wake-up on one machine to the longest queue clock.
const SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 300.0];
/// Bucket bounds in events.
const EVENTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts recording. A second call in one process does nothing.
pub fn install() {
    RECORDER.get_or_init(|| {
        let installed = builder().and_then(PrometheusBuilder::install_recorder);
        if let Err(why) = &installed {
            tracing::error!(%why, "metrics cannot be recorded; /metrics stays empty");
        }
        describe();
        installed.ok()
    });
}

/// All metrics in Prometheus' text format; empty before [`install`].
pub fn render() -> String {
    upkeep();
    RECORDER.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// Merges recorded samples. Must be called every few seconds: samples pile up if nobody reads the metrics.
pub fn upkeep() {
    if let Some(recorder) = RECORDER.get().and_then(Option::as_ref) {
        recorder.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), &EVENTS)
}

fn describe() {
    for (name, shape, unit, tells) in METRICS {
        match shape {
            Counter => metrics::describe_counter!(name, unit, tells),
            Gauge => metrics::describe_gauge!(name, unit, tells),
            Histogram => metrics::describe_histogram!(name, unit, tells),
        }
    }
}

/// Counts an accepted turn.
pub fn turns_accepted(agent: &str) {
    counter!(TURNS_ACCEPTED, "agent" => agent.to_owned()).increment(1);
}

/// Counts a last word. `code`: the failure's code; for a cancelled turn who cancelled, or why the turn could not be
/// cancelled by its worker; empty for a completed turn.
pub fn last_words(kind: Kind, code: &str) {
    counter!(LAST_WORDS, "kind" => kind.as_str(), "code" => code.to_owned()).increment(1);
}

/// Sets the number of turns in flight on all replicas.
pub fn inflight(turns: u64) {
    gauge!(INFLIGHT).set(turns as f64);
}

/// Sets the number of queued turns.
pub fn queued(turns: u64) {
    gauge!(QUEUED).set(turns as f64);
}

/// Sets the number of overdue turns.
pub fn overdue(turns: u64) {
    gauge!(OVERDUE).set(turns as f64);
}

/// Counts a write that was refused because the turn is held elsewhere.
pub fn leases_lost() {
    counter!(LEASES_LOST).increment(1);
}

/// Counts a verdict of this replica on another one.
pub fn verdicts(reason: &'static str) {
    counter!(VERDICTS, "reason" => reason).increment(1);
}

/// Counts a turn of which the database lost commits, and its lost events. `how`: `closed`, `changed` or
/// `vanished`.
pub fn rewound(how: &str, events: i32) {
    counter!(REWOUND_TURNS, "how" => how.to_owned()).increment(1);
    counter!(REWOUND_EVENTS).increment(u64::from(events.unsigned_abs()));
}

/// Counts a lost replica that had not compared its commits since a failover.
pub fn unreconciled() {
    counter!(UNRECONCILED).increment(1);
}

/// Counts a turn put back into the queue.
pub fn requeued(reason: &'static str) {
    counter!(REQUEUED, "reason" => reason).increment(1);
}

/// Records the time from a turn's place at the head of its conversation's line to the claim.
pub fn queue_wait(waited: Duration) {
    histogram!(QUEUE_WAIT).record(waited);
}

/// Records the time from acceptance to the worker's first event.
pub fn time_to_first_event(waited: Duration) {
    histogram!(TIME_TO_FIRST_EVENT).record(waited);
}

/// Counts appended events.
pub fn events_appended(events: usize) {
    counter!(EVENTS_APPENDED).increment(events as u64);
}

/// Records the number of events in one flush: mostly one commit, two if turns go on and others end in the same flush.
pub fn append_batch(events: usize) {
    histogram!(APPEND_BATCH).record(events as f64);
}

/// Counts a ring of the doorbell.
pub fn doorbell_rings() {
    counter!(DOORBELL_RINGS).increment(1);
}

/// Records the time until this replica heard its own ring.
pub fn doorbell_round_trip(took: Duration) {
    histogram!(DOORBELL_ROUND_TRIP).record(took);
}

/// Sets how much of a bound is used, and the bound. `bound` comes from a fixed set of names, such as `streams`.
pub fn bound(bound: &'static str, used: u64, max: u64) {
    gauge!(BOUND_USED, "bound" => bound).set(used as f64);
    gauge!(BOUND_MAX, "bound" => bound).set(max as f64);
}

/// Counts a connection that was refused (`full`, `address`) or closed to make room (`idle`).
pub fn connections_cut(reason: &'static str) {
    counter!(CONNECTIONS_CUT, "reason" => reason).increment(1);
}

/// Sets whether this replica claims nothing because it cannot start workers.
pub fn claims_paused(is_paused: bool) {
    gauge!(CLAIMS_PAUSED).set(f64::from(u8::from(is_paused)));
}

/// Counts an open stream until the returned value is dropped.
pub fn streams_open() -> OpenStream {
    gauge!(STREAMS_OPEN).increment(1);
    OpenStream(())
}

/// One open stream, until dropped.
#[derive(Debug)]
#[must_use = "the stream counts as closed when it is dropped"]
pub struct OpenStream(());

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!(STREAMS_OPEN).decrement(1);
    }
}

/// Sets the number of this replica's workers in a state.
pub fn workers(state: &'static str, workers: usize) {
    gauge!(WORKERS, "state" => state).set(workers as f64);
}

/// Counts a worker's end.
pub fn worker_exits(reason: &'static str) {
    counter!(WORKER_EXITS, "reason" => reason).increment(1);
}

/// Counts a statement that Postgres did not execute.
pub fn db_errors(op: &'static str) {
    counter!(DB_ERRORS, "op" => op).increment(1);
}

/// Counts a foreign session that holds a lock which a write needs.
pub fn blocker_met() {
    counter!(BLOCKERS).increment(1);
}

/// Counts a request refused for an unknown token.
pub fn auth_failures() {
    counter!(AUTH_FAILURES).increment(1);
}

/// Counts an answered request. `route` is the matched pattern, never the path.
pub fn http_requests(route: &str, status: u16, took: Duration) {
    counter!(HTTP_REQUESTS, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
    histogram!(HTTP_SECONDS, "route" => route.to_owned()).record(took);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say_everything() {
        let took = Duration::from_millis(3);
        turns_accepted("demo");
        last_words(Kind::Failed, "worker_exited");
        inflight(2);
        queued(1);
        overdue(1);
        leases_lost();
        verdicts("exited");
        rewound("closed", 3);
        unreconciled();
        requeued("replica_lost");
        counter!(LATE_OUTPUT).increment(1);
        queue_wait(took);
        time_to_first_event(took);
        events_appended(5);
        append_batch(5);
        bound("streams", 7, 10_000);
        connections_cut("full");
        claims_paused(false);
        doorbell_rings();
        doorbell_round_trip(took);
        workers("idle", 3);
        worker_exits("idle");
        db_errors("append");
        blocker_met();
        auth_failures();
        http_requests("/v1/turns", 202, took);
    }

    #[test]
    fn every_metric_is_recorded_and_described() {
        // A recorder of its own: other tests of this process count into the global one.
        let recorder = builder().unwrap().build_recorder();
        let page = metrics::with_local_recorder(&recorder, || {
            describe();
            say_everything();
            let stream = streams_open();
            let page = recorder.handle().render();
            assert!(page.contains("lastword_streams_open 1"), "{page}");
            drop(stream);
            recorder.handle().render()
        });
        for (name, shape, _, tells) in METRICS {
            let shape = match shape {
                Counter => "counter",
                Gauge => "gauge",
                Histogram => "histogram",
            };
            assert!(page.contains(&format!("# HELP {name} {tells}")), "{name}\n{page}");
            assert!(page.contains(&format!("# TYPE {name} {shape}")), "{name}\n{page}");
        }
        for line in [
            r#"lastword_last_words_total{kind="failed",code="worker_exited"} 1"#,
            r#"lastword_append_batch_events_bucket{le="8"} 1"#,
            "lastword_streams_open 0",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn installing_twice_keeps_what_was_recorded() {
        install();
        turns_accepted("twice");
        install();
        assert!(render().contains(r#"lastword_turns_accepted_total{agent="twice"} 1"#));
    }
}
