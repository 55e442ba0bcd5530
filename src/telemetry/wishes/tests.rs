//! What the variables of OpenTelemetry mean.

use super::*;

fn read(otlp_endpoint: Option<&str>, variables: &[(&str, &str)]) -> Wishes {
    let get = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    // As the configuration merges them.
    let merged = ["LASTWORD_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(get);
    Wishes::read(merged.as_deref().or(otlp_endpoint), &get)
}

/// Where to, in which protocol, and how many warnings.
fn target(otlp_endpoint: Option<&str>, variables: &[(&str, &str)]) -> (Option<(String, Protocol)>, usize) {
    let wishes = read(otlp_endpoint, variables);
    (wishes.export.map(|export| (export.url.to_string(), export.protocol)), wishes.warnings.len())
}

const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

#[test]
fn an_endpoint_is_taken_as_the_specification_has_it() {
    use Protocol::{Grpc, Http};
    for (variables, url, protocol, warnings) in [
        (&[(ALL, "http://c:4318")][..], "http://c:4318/v1/traces", Http, 0),
        (&[(ALL, "https://c/in/")], "https://c/in/v1/traces", Http, 0),
        (&[(ALL, "http://c:4318/v1/traces/")], "http://c:4318/v1/traces", Http, 0),
        (&[(TRACES, "http://c:4318")], "http://c:4318/", Http, 0),
        (&[(TRACES, "http://c/as/it/is/"), (ALL, "http://other")], "http://c/as/it/is/", Http, 0),
        (&[(TRACES, ""), (ALL, "http://c")], "http://c/v1/traces", Http, 0),
        (
            &[(TRACES, "http://t"), ("LASTWORD_OTLP_ENDPOINT", "http://ours")],
            "http://ours/v1/traces",
            Http,
            0,
        ),
        (&[(ALL, "c:4318")], "http://c:4318/v1/traces", Http, 1),
        (&[(ALL, "10.0.0.1:4318")], "http://10.0.0.1:4318/v1/traces", Http, 1),
        (&[(ALL, "http://c:4317")], "http://c:4317/", Grpc, 0),
        (&[(ALL, "c:4317")], "https://c:4317", Grpc, 1),
        (&[(ALL, "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")], "http://c:4317/", Grpc, 1),
        (&[(ALL, "http://c:4317"), (PROTOCOL, "http/protobuf")], "http://c:4317/v1/traces", Http, 1),
        (&[(ALL, "http://c:4318"), (PROTOCOL, "GRPC")], "http://c:4318/", Grpc, 1),
        (&[(ALL, "http://c:1"), (PROTOCOL, "http/json")], "http://c:1/v1/traces", Http, 1),
        (&[(ALL, "http://c:1"), (PROTOCOL, "smoke")], "http://c:1/v1/traces", Http, 1),
        (
            &[
                (ALL, "http://c:1"),
                (PROTOCOL, "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ],
            "http://c:1/",
            Grpc,
            0,
        ),
        (&[("OTEL_TRACES_EXPORTER", "otlp")], "http://localhost:4318/v1/traces", Http, 0),
        (&[("OTEL_TRACES_EXPORTER", "otlp"), (PROTOCOL, "grpc")], "http://localhost:4317/", Grpc, 0),
        (&[("OTEL_TRACES_EXPORTER", "console"), (ALL, "http://c")], "http://c/v1/traces", Http, 1),
        (&[("OTEL_TRACES_EXPORTER", "zipkin, otlp"), (ALL, "http://c")], "http://c/v1/traces", Http, 1),
        (&[("OTEL_SDK_DISABLED", "yes"), (ALL, "http://c")], "http://c/v1/traces", Http, 1),
    ] {
        let (to, count) = target(None, variables);
        let (seen, spoken) = to.unwrap_or_else(|| panic!("nowhere: {variables:?}"));
        let wanted = (url.trim_end_matches('/'), protocol, warnings);
        assert_eq!((seen.trim_end_matches('/'), spoken, count), wanted, "{variables:?}");
    }
    let slash = read(None, &[(TRACES, "http://c/as/it/is/")]).export.unwrap();
    assert_eq!(slash.url.as_str(), "http://c/as/it/is/", "as it is");
    assert_eq!(target(Some("http://file"), &[(TRACES, "http://t/x")]).0.unwrap().0, "http://t/x");
}

#[test]
fn nothing_is_exported_where_nobody_asks_for_it() {
    for (variables, warnings) in [
        (&[][..], 0),
        (&[("OTEL_TRACES_EXPORTER", "console")], 1),
        (&[("OTEL_SERVICE_NAME", "chat")], 0),
        (&[(ALL, "http://c"), ("OTEL_SDK_DISABLED", "TRUE")], 0),
        (&[(ALL, "http://c"), ("OTEL_TRACES_EXPORTER", "none")], 0),
        (&[(ALL, "unix:///run/collector")], 1),
        (&[(ALL, "http://")], 1),
        (&[(ALL, "::::")], 1),
        (&[(ALL, "what is this")], 1),
    ] {
        assert_eq!(target(None, variables), (None, warnings), "{variables:?}");
    }
    let said = read(None, &[(ALL, "http://me:s3cret@")]).warnings;
    assert!(said.len() == 1 && !said[0].contains("s3cret"), "{said:?}");
}

#[test]
fn headers_time_and_names_are_decoded_and_the_nearest_wins() {
    let base = (ALL, "http://c");
    let wishes = read(
        None,
        &[
            base,
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=a%20b%2Cc , x-team=chat=1,"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,where=e%C3%BC%2C 1"),
            ("OTEL_SERVICE_NAME", "chat"),
        ],
    );
    let text = |pairs: &[(String, String)]| {
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    let export = wishes.export.unwrap();
    assert_eq!(text(&export.headers), ["x-api-key=a b,c", "x-team=chat=1"]);
    assert_eq!(export.timeout, Duration::from_millis(2500));
    assert_eq!(text(&wishes.attributes), ["service.name=no", "where=eü, 1", "service.name=chat"]);
    assert_eq!(wishes.warnings, [""; 0]);

    let wishes = read(
        None,
        &[
            base,
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "s3cret,b=2,c=%0A"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=%zz"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ],
    );
    let export = wishes.export.unwrap();
    assert_eq!((text(&export.headers), export.timeout), (vec!["b=2".to_owned()], TIMEOUT));
    assert_eq!((wishes.attributes.len(), wishes.warnings.len()), (0, 6), "{:?}", wishes.warnings);
    assert!(wishes.warnings.iter().all(|said| !said.contains("s3cret")), "{:?}", wishes.warnings);
}
