//! The export of spans to a collector.
//!
//! Owns the exporter, its time limit, and the log lines about an unreachable collector: one at once, one a minute
//! with a count, one when it is back. A failed export never affects the code that made the span.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol as Otlp, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::{metadata::MetadataMap, transport::ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::TelemetryResourceDetector,
    trace::{SdkTracerProvider, SpanData, SpanExporter as Exporter},
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::wishes::{Export, Protocol, Wishes};

/// Interval of log lines about an unreachable collector.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The exporter of this process's spans, configured by `wishes`.
///
/// # Errors
/// The exporter cannot be built, for example because TLS is needed and this machine trusts no CA.
pub fn provider(
    export: &Export,
    wishes: &Wishes,
    replica: &str,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let own = [
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", replica),
    ];
    let own = own.map(|(key, value)| KeyValue::new(key, value.to_owned()));
    let given = wishes.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    // Without the detector of variables, which does not decode them.
    let resource = Resource::builder_empty().with_detector(Box::new(TelemetryResourceDetector));
    let resource = resource.with_attributes(own).with_attributes(given).build();
    let told = ToldExporter {
        exporter: exporter(export)?,
        timeout: export.timeout,
        runtime: Handle::try_current().ok(),
        absence: Mutex::default(),
    };
    Ok(SdkTracerProvider::builder().with_batch_exporter(told).with_resource(resource).build())
}

fn exporter(export: &Export) -> Result<SpanExporter, ExporterBuildError> {
    let headers = export.headers.iter();
    match export.protocol {
        Protocol::Http => SpanExporter::builder()
            .with_http()
            .with_protocol(Otlp::HttpBinary)
            .with_endpoint(export.url.as_str())
            .with_timeout(export.timeout)
            .with_headers(headers.cloned().collect::<HashMap<_, _>>())
            .build(),
        Protocol::Grpc => {
            if Handle::try_current().is_err() {
                return Err(ExporterBuildError::InternalFailure("gRPC needs a runtime".to_owned()));
            }
            let headers = headers.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
            let builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(export.url.as_str())
                .with_timeout(export.timeout)
                .with_metadata(MetadataMap::from_headers(headers.collect()));
            match export.url.scheme() {
                "https" => builder.with_tls_config(ClientTlsConfig::new().with_native_roots()).build(),
                _ => builder.build(),
            }
        }
    }
}

/// An exporter that logs failures.
#[derive(Debug)]
struct ToldExporter {
    exporter: SpanExporter,
    timeout: Duration,
    /// The runtime for gRPC: the exporting thread has no timers of its own.
    runtime: Option<Handle>,
    absence: Mutex<Option<Absence>>,
}

/// An outage of the collector.
#[derive(Debug)]
struct Absence {
    began: Instant,
    told: Instant,
    spans: usize,
}

impl Exporter for ToldExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch);
        let done = match &self.runtime {
            // The exporter itself does not bound the time to connect.
            Some(runtime) => {
                let bounded = {
                    let _inside = runtime.enter();
                    tokio::time::timeout(self.timeout, exported)
                };
                bounded.await.unwrap_or(Err(OTelSdkError::Timeout(self.timeout)))
            }
            None => exported.await,
        };
        self.tell(spans, done.err());
        // `Ok`, because the SDK would log every error.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl ToldExporter {
    fn tell(&self, spans: usize, failed: Option<OTelSdkError>) {
        let mut absence = self.absence.lock();
        match (&mut *absence, failed) {
            (None, None) => {}
            (None, Some(why)) => {
                let now = Instant::now();
                *absence = Some(Absence { began: now, told: now, spans });
                tracing::warn!(spans, %why, "traces cannot be exported and are dropped; turns go on");
            }
            (Some(absent), Some(why)) => {
                absent.spans += spans;
                if absent.told.elapsed() >= TOLD_EVERY {
                    absent.told = Instant::now();
                    tracing::warn!(spans = absent.spans, %why, "traces still cannot be exported");
                }
            }
            (Some(absent), None) => {
                let (spans, seconds) = (absent.spans, absent.began.elapsed().as_secs());
                *absence = None;
                tracing::info!(dropped = spans, seconds, "traces are exported again");
            }
        }
    }
}

/// The tracer of this program's spans.
pub fn tracer(provider: &SdkTracerProvider) -> opentelemetry_sdk::trace::SdkTracer {
    provider.tracer(env!("CARGO_PKG_NAME"))
}
