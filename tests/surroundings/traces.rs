//! The variables of OpenTelemetry, and their effect at a collector.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::{net::TcpListener, time::Instant};

use crate::{
    collector::{Collector, Export},
    support::{Cluster, eventually},
};

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");
const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

/// How often the log of a replica says this.
fn times(cluster: &Cluster, i: usize, text: &str) -> usize {
    cluster.log(i).matches(text).count()
}

/// Lines of a log that tell of something wrong, but for the one that tells who agents' commands run as.
fn faults(log: &str) -> usize {
    let is_fault = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    log.lines().filter(is_fault).filter(|line| !line.contains("agents' commands run as")).count()
}

/// A replica with these variables leaves, and ends well.
async fn leaves(cluster: &Cluster, i: usize) {
    cluster.terminate(i);
    let end = cluster.wait_exit(i).await;
    assert!(end.success(), "{end}:\n{}", cluster.log(i));
}

/// What a collector gets first from a replica with these variables, and the replica's log. The replica is gone then.
async fn first(cluster: &Cluster, collector: &mut Collector, env: &[(&str, &str)]) -> (Export, String) {
    let i = cluster.spawn_replica_with(&[&[SOON], env].concat()).await;
    let export = collector.next().await;
    leaves(cluster, i).await;
    while !collector.is_empty() {}
    assert!(export.spans().contains(&"request"), "{:?}", export.spans());
    (export, cluster.log(i))
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_over_http_with_the_headers_and_names_of_the_variables() {
    let cluster = Cluster::start(0).await;
    let mut collector = Collector::http(StatusCode::OK).await;
    let url = format!("http://{}", collector.address);
    let base = format!("{url}/base/");
    let i = cluster
        .spawn_replica_with(&[
            SOON,
            (ALL, &base),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=s3cret%20one%2Ctwo,x-team=chat"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,service.instance.id=pod-1,where=prod%20eu"),
            ("OTEL_SERVICE_NAME", "chat"),
        ])
        .await;
    let export = collector.next().await;
    assert_eq!(export.path, "/base/v1/traces");
    assert_eq!(export.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(export.header("x-api-key"), Some("s3cret one,two"));
    assert_eq!(export.header("x-team"), Some("chat"));
    for (key, value) in [
        ("service.name", "chat"),
        ("service.instance.id", "pod-1"),
        ("where", "prod eu"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("telemetry.sdk.language", "rust"),
    ] {
        assert_eq!(export.attribute(key).as_deref(), Some(value), "{key}");
    }
    let environment = std::fs::read(format!("/proc/{}/environ", cluster.pid(i))).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("s3cret"), "others could read it");
    leaves(&cluster, i).await;
    assert!(!cluster.log(i).contains("s3cret"));
    while !collector.is_empty() {}

    // The variable for traces is taken as it is, and comes before the one for everything; so do its headers.
    let whole = format!("{url}/as/it/is");
    let near = [
        (ALL, "http://127.0.0.1:9"),
        (TRACES, &whole),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=no"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-key=1"),
    ];
    let (export, _) = first(&cluster, &mut collector, &near).await;
    assert_eq!((export.path.as_str(), export.header("x-key")), ("/as/it/is", Some("1")));
    assert_eq!(export.header("x-team"), None);
    assert_eq!(export.attribute("service.name").as_deref(), Some("lastword"));

    // Ours comes before both.
    let ours = [("LASTWORD_OTLP_ENDPOINT", url.as_str()), (TRACES, "http://127.0.0.1:9/x")];
    assert_eq!(first(&cluster, &mut collector, &ours).await.0.path, "/v1/traces");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_over_grpc_where_it_is_asked_for_or_its_port_is_named() {
    let cluster = Cluster::start(0).await;
    let mut collector = Collector::grpc("127.0.0.1:0").await;
    let url = format!("http://{}", collector.address);
    let named = [(ALL, url.as_str()), (PROTOCOL, "grpc"), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b")];
    let named = [&named[..], &[("OTEL_SERVICE_NAME", "chat")]].concat();
    let (export, log) = first(&cluster, &mut collector, &named).await;
    assert_eq!(export.path, GRPC_PATH);
    assert_eq!(export.header("x-key"), Some("a b"));
    assert_eq!(export.attribute("service.name").as_deref(), Some("chat"));
    assert_eq!(faults(&log), 0, "{log}");

    // Without a scheme, TLS is what the specification has unless a variable says otherwise.
    let bare = collector.address.to_string();
    let insecure = [(ALL, bare.as_str()), (PROTOCOL, "grpc"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")];
    let (export, log) = first(&cluster, &mut collector, &insecure).await;
    assert_eq!((export.path.as_str(), log.matches("has no scheme").count()), (GRPC_PATH, 1), "{log}");

    // An address of its own, so that the port is free.
    let own = format!("127.{}.{}.7:4317", rand::random_range(1..255), rand::random_range(0..255));
    let mut collector = Collector::grpc(&own).await;
    let url = format!("http://{own}");
    let (export, log) = first(&cluster, &mut collector, &[(ALL, &url)]).await;
    assert_eq!(export.path, GRPC_PATH);
    assert_eq!(faults(&log), 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_nothing_is_warned_about_once_and_the_rest_goes_on() {
    let cluster = Cluster::start(0).await;
    let mut collector = Collector::http(StatusCode::OK).await;
    let (bare, url) = (collector.address.to_string(), format!("http://{}", collector.address));
    for (env, warning) in [
        (&[(ALL, bare.as_str())][..], "has no scheme; http:// is assumed"),
        (&[(ALL, &url), (PROTOCOL, "http/json")], "http/json is not supported"),
        (&[(ALL, &url), (PROTOCOL, "smoke")], "`smoke` is not a known protocol"),
        (&[(ALL, &url), ("OTEL_TRACES_EXPORTER", "console")], "`console` is not supported"),
        (&[(ALL, &url), ("OTEL_TRACES_SAMPLER", "sometimes")], "Unrecognized sampler type 'sometimes'"),
        (&[(ALL, &url), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")], "`gzip` is not supported"),
    ] {
        let (export, log) = first(&cluster, &mut collector, env).await;
        assert_eq!(export.path, "/v1/traces");
        assert_eq!(log.matches(warning).count(), 1, "{warning}:\n{log}");
        assert_eq!(faults(&log), 1, "{warning}:\n{log}");
    }
    for env in [
        &[(ALL, "unix:///run/collector")][..],
        &[(ALL, "::::")],
        &[(TRACES, "http://")],
        &[("LASTWORD_OTLP_ENDPOINT", "what is this")],
    ] {
        let i = cluster.spawn_replica_with(env).await;
        leaves(&cluster, i).await;
        assert_eq!(times(&cluster, i, "no traces are exported"), 1, "{env:?}:\n{}", cluster.log(i));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_exported_where_a_variable_forbids_it() {
    let cluster = Cluster::start(0).await;
    let mut collector = Collector::http(StatusCode::OK).await;
    let url = format!("http://{}", collector.address);
    for env in [
        [("OTEL_SDK_DISABLED", "true"), (ALL, url.as_str())],
        [("OTEL_TRACES_EXPORTER", "none"), (ALL, &url)],
        [("OTEL_TRACES_SAMPLER", "always_off"), (ALL, &url)],
    ] {
        let i = cluster.spawn_replica_with(&env).await;
        // Its end exports what is left.
        leaves(&cluster, i).await;
        assert!(collector.is_empty(), "{env:?}");
    }
    let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1"), (ALL, &url)];
    first(&cluster, &mut collector, &ratio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_refuses_or_hangs_costs_one_line_and_holds_nothing_up() {
    let cluster = Cluster::start(0).await;
    let mut refusing = Collector::http(StatusCode::FORBIDDEN).await;
    let url = format!("http://{}", refusing.address);
    let i = cluster.spawn_replica_with(&[SOON, (ALL, &url)]).await;
    for _ in 0..3 {
        cluster.get(i, "/v1/agents").await;
        refusing.next().await;
    }
    leaves(&cluster, i).await;
    assert_eq!(times(&cluster, i, "traces cannot be exported"), 1, "{}", cluster.log(i));
    assert_eq!(faults(&cluster.log(i)), 1, "{}", cluster.log(i));

    // Taken by the system, and answered by nobody.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", hanging.local_addr().unwrap());
    let plain = Collector::grpc("127.0.0.1:0").await;
    let tls = format!("https://{}", plain.address);
    for (url, protocol) in [(&url, "http/protobuf"), (&url, "grpc"), (&tls, "grpc")] {
        let i = cluster.spawn_replica_with(&[SOON, (ALL, url), (PROTOCOL, protocol)]).await;
        cluster.get(i, "/v1/agents").await;
        let began = Instant::now();
        leaves(&cluster, i).await;
        let lasted = began.elapsed();
        assert!(lasted < Duration::from_secs(10), "{protocol}: {lasted:?}\n{}", cluster.log(i));
    }
    let i = cluster.spawn_replica_with(&[SOON, (ALL, &url), ("OTEL_EXPORTER_OTLP_TIMEOUT", "100")]).await;
    eventually("the export lapses", async || {
        cluster.get(i, "/v1/agents").await;
        (times(&cluster, i, "traces cannot be exported") == 1).then_some(())
    })
    .await;
}
