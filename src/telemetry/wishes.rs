//! What the OpenTelemetry variables ask for.
//!
//! Owns their meaning, as the specification defines it. Refuses nothing: an invalid value is skipped with a
//! warning, since no turn depends on a trace. An empty variable counts as not set.

use std::time::Duration;

use reqwest::Url;

/// Default time limit of one export.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The standard ports of collectors for gRPC and HTTP.
const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const TRACES_PATH: &str = "/v1/traces";

/// Variables that hold secrets: API keys of trace services.
pub const SECRET_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

/// The requested export.
#[derive(Debug, Default, PartialEq)]
pub struct Wishes {
    /// The destination; `None`: no export.
    pub export: Option<Export>,
    /// Further resource attributes, `service.name` among them.
    pub attributes: Vec<(String, String)>,
    /// What was skipped, one sentence each.
    pub warnings: Vec<String>,
}

/// Where traces go, and how.
#[derive(Debug, PartialEq)]
pub struct Export {
    /// The whole URL; gRPC ignores its path.
    pub url: Url,
    /// The protocol of the collector.
    pub protocol: Protocol,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// Time limit of one export, retries included.
    pub timeout: Duration,
}

/// The protocol of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protobuf.
    Http,
}

impl Protocol {
    /// The name in the variable.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Grpc => "grpc",
            Protocol::Http => "http/protobuf",
        }
    }
}

/// The variables, and the warnings so far.
struct WishReading<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Wishes {
    /// Reads the variables through `get`; `otlp_endpoint` is the configuration's.
    pub fn read(otlp_endpoint: Option<&str>, get: &dyn Fn(&str) -> Option<String>) -> Wishes {
        let mut reading = WishReading { get, warnings: Vec::new() };
        let export = reading.export(otlp_endpoint);
        // Attributes are read only if something is exported.
        let attributes = export.as_ref().map(|_| reading.attributes()).unwrap_or_default();
        Wishes { export, attributes, warnings: reading.warnings }
    }
}

impl WishReading<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.get)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The value and name of the variable for traces, else of the general one.
    fn of_traces(&self, name: &str) -> Option<(String, String)> {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
        names.into_iter().find_map(|name| Some((self.get(&name)?, name)))
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    fn export(&mut self, otlp_endpoint: Option<&str>) -> Option<Export> {
        if self.is_disabled() {
            return None;
        }
        let exporter = self.exporter();
        if exporter == Some(false) {
            return None;
        }
        let is_named = otlp_endpoint.is_some() || self.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
        if !is_named && exporter.is_none() {
            return None;
        }
        let named = self.protocol();
        let (url, protocol) = self.endpoint(otlp_endpoint, named)?;
        self.unsupported();
        let (headers, timeout) = (self.headers(), self.timeout());
        Some(Export { url, protocol, headers, timeout })
    }

    fn is_disabled(&mut self) -> bool {
        let Some(value) = self.get("OTEL_SDK_DISABLED") else { return false };
        let is_disabled = value.eq_ignore_ascii_case("true");
        if !is_disabled && !value.eq_ignore_ascii_case("false") {
            self.warn(format!("OTEL_SDK_DISABLED: `{value}` is neither true nor false, and counts as false"));
        }
        is_disabled
    }

    /// Whether traces are exported; `None` if no variable says.
    fn exporter(&mut self) -> Option<bool> {
        let named = self.get("OTEL_TRACES_EXPORTER")?;
        let mut wanted = None;
        for exporter in named.split(',').map(str::trim).filter(|exporter| !exporter.is_empty()) {
            match exporter.to_ascii_lowercase().as_str() {
                "otlp" => wanted = Some(true),
                "none" => wanted = wanted.or(Some(false)),
                _ => self.warn(format!(
                    "OTEL_TRACES_EXPORTER: `{exporter}` is not supported and ignored: use otlp or none"
                )),
            }
        }
        wanted
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let (value, name) = self.of_traces("PROTOCOL")?;
        match value.to_ascii_lowercase().as_str() {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::Http),
            "http/json" => {
                self.warn(format!(
                    "{name}: http/json is not supported: http/protobuf is used, on the same port"
                ));
                Some(Protocol::Http)
            }
            _ => {
                self.warn(format!(
                    "{name}: `{value}` is not a known protocol and ignored: use grpc or http/protobuf"
                ));
                None
            }
        }
    }

    /// The destination. Precedence: `LASTWORD_OTLP_ENDPOINT`, the variable for traces, the general variable, the
    /// file. The configuration merges all but the variable for traces.
    fn endpoint(&mut self, otlp_endpoint: Option<&str>, named: Option<Protocol>) -> Option<(Url, Protocol)> {
        let is_ours = self.get("LASTWORD_OTLP_ENDPOINT").is_some();
        let whole = self.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").filter(|_| !is_ours);
        let (text, source) = match (&whole, otlp_endpoint.map(str::trim)) {
            (Some(text), _) => (text.as_str(), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            (None, Some(text)) => (text, "otlp_endpoint (OTEL_EXPORTER_OTLP_ENDPOINT)"),
            (None, None) if named == Some(Protocol::Grpc) => ("http://localhost:4317", "the default"),
            (None, None) => ("http://localhost:4318", "the default"),
        };
        let has_scheme = text.contains("://");
        let with_scheme = |scheme: &str| Url::parse(&format!("{scheme}://{text}"));
        let parsed = if has_scheme { Url::parse(text) } else { with_scheme("http") };
        let usable = parsed.ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(mut url) = usable else {
            // Not shown: it may contain a password.
            self.warn(format!("{source}: is not an http:// or https:// URL; no traces are exported"));
            return None;
        };
        let by_port = if url.port() == Some(GRPC_PORT) { Protocol::Grpc } else { Protocol::Http };
        let protocol = named.unwrap_or(by_port);
        if !has_scheme {
            let scheme = if protocol == Protocol::Grpc && !self.is_insecure() { "https" } else { "http" };
            url = with_scheme(scheme).ok()?;
            let by_variable = if protocol == Protocol::Grpc {
                " by OTEL_EXPORTER_OTLP_INSECURE (default: false)"
            } else {
                ""
            };
            self.warn(format!(
                "{source}: has no scheme; {scheme}:// is assumed{by_variable}: add the scheme"
            ));
        }
        match (protocol, url.port()) {
            (Protocol::Http, Some(GRPC_PORT)) => {
                self.warn(format!("{source}: 4317 is the port for gRPC, but the protocol is http/protobuf"));
            }
            (Protocol::Grpc, Some(HTTP_PORT)) => {
                self.warn(format!("{source}: 4318 is the port for HTTP, but the protocol is grpc"));
            }
            _ => {}
        }
        let base = url.path().trim_end_matches('/').to_owned();
        if protocol == Protocol::Http && whole.is_none() && !base.ends_with(TRACES_PATH) {
            url.set_path(&format!("{base}{TRACES_PATH}"));
        } else if protocol == Protocol::Http && whole.is_none() {
            url.set_path(&base);
        }
        Some((url, protocol))
    }

    fn is_insecure(&self) -> bool {
        self.of_traces("INSECURE").is_some_and(|(value, _)| value.eq_ignore_ascii_case("true"))
    }

    /// Warns about features of the specification that this program lacks.
    fn unsupported(&mut self) {
        for name in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"] {
            if let Some((_, name)) = self.of_traces(name) {
                self.warn(format!(
                    "{name}: is not supported and ignored: SSL_CERT_FILE names the trusted CAs"
                ));
            }
        }
        let compression = self.of_traces("COMPRESSION");
        if let Some((value, name)) = compression.filter(|(value, _)| !value.eq_ignore_ascii_case("none")) {
            self.warn(format!("{name}: `{value}` is not supported: traces are sent uncompressed"));
        }
    }

    fn headers(&mut self) -> Vec<(String, String)> {
        let Some((value, name)) = self.of_traces("HEADERS") else { return Vec::new() };
        let mut headers = Vec::new();
        for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
            match pair_of(pair).filter(|(key, value)| is_header(key, value)) {
                Some(header) => headers.push(header),
                // Neither is shown: a key without `=` may be the secret itself.
                None => self.warn(format!(
                    "{name}: an entry is not `name=value`, percent-encoded where needed, and is ignored"
                )),
            }
        }
        headers
    }

    fn timeout(&mut self) -> Duration {
        let Some((value, name)) = self.of_traces("TIMEOUT") else { return TIMEOUT };
        match value.parse::<u64>() {
            Ok(millis) if millis > 0 => Duration::from_millis(millis),
            _ => {
                self.warn(format!("{name}: `{value}` is not a number of milliseconds; 10000 is used"));
                TIMEOUT
            }
        }
    }

    fn attributes(&mut self) -> Vec<(String, String)> {
        let text = self.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
        // All or none: a part of them would describe another resource.
        let mut attributes = pairs.map(pair_of).collect::<Option<Vec<_>>>().unwrap_or_else(|| {
            self.warn(
                "OTEL_RESOURCE_ATTRIBUTES: is not a list of `key=value`, percent-encoded where needed, and is ignored",
            );
            Vec::new()
        });
        attributes.extend(self.get("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
        attributes
    }
}

fn pair_of(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    let (key, value) = (decoded(key.trim())?, decoded(value.trim())?);
    (!key.is_empty()).then_some((key, value))
}

/// Decodes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { digit()? * 16 + digit()? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

fn is_header(name: &str, value: &str) -> bool {
    use reqwest::header::{HeaderName, HeaderValue};
    name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok()
}

#[cfg(test)]
mod tests;
