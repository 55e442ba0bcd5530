//! The settings of one replica, their defaults, and values derived from them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::shape::{FLAG, Key, LIST, NUMBER, TEXT, secret};
use crate::units::{Size, Span};

/// One row a setting: what it is, its type, its default and its key.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr => $key:expr;)*) => {
        /// The configuration of one replica.
        #[derive(Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Config { $($name: $default,)* }
            }
        }

        /// Every key, in the order in which the configuration is shown.
        pub(super) const KEYS: &[Key] = &[$(Key { name: stringify!($name), ..$key },)*];
    };
}

settings! {
    /// URL of Postgres: `postgres://USER:PASSWORD@HOST:PORT/NAME`. Also `DATABASE_URL`, and
    /// `LASTWORD_DATABASE_URL_FILE` for a file that holds it.
    database_url: String = String::new() => Key { foreign: Some("DATABASE_URL"), ..secret(TEXT) };
    /// URL of Postgres without a transaction pooler, for the doorbell and presence. Default: `database_url`.
    listener_database_url: Option<String> = None => secret(TEXT);
    /// The file that `database_url` was read from. It is read again when it changes, and when a login is refused.
    database_url_file: Option<PathBuf> = None => TEXT;
    /// Like `database_url_file`, for `listener_database_url`.
    listener_database_url_file: Option<PathBuf> = None => TEXT;
    /// The schema of all tables. Default: `lastword`, or the schema that an older release has used.
    database_schema: Option<String> = None => TEXT;
    /// The address to listen on.
    listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)) => TEXT;
    /// The URL at which other replicas and operators reach this one. Default: `http://` and the address. The
    /// variable is `LASTWORD_ADVERTISED_URL`, since `LASTWORD_URL` is the gateway that a client calls.
    url: Option<String> = None => Key { variable: Some("LASTWORD_ADVERTISED_URL"), ..TEXT };
    /// The directory that holds the workspaces.
    data_dir: PathBuf = PathBuf::from("lastword-data") => TEXT;
    /// Bearer tokens for the client routes. Comma-separated in the environment.
    client_tokens: Vec<String> = Vec::new() => secret(LIST);
    /// Bearer tokens for every route. Comma-separated in the environment.
    operator_tokens: Vec<String> = Vec::new() => secret(LIST);
    /// Bearer tokens of remote workers, for any agent. Comma-separated in the environment.
    worker_tokens: Vec<String> = Vec::new() => secret(LIST);
    /// Leaves the client routes open where this is otherwise refused: beyond loopback, and beside operator tokens.
    /// For a gateway that something else protects. Only pages of other sites are still refused.
    insecure: bool = false => FLAG;
    /// Marks a replica of `lastword dev`: loopback only, `Host` checked.
    dev: bool = false => FLAG;
    /// The largest request body.
    body_max: Size = Size::mib(1) => TEXT;
    /// Bytes of request bodies held at once, beyond the first 16 KiB of each.
    bodies_max: Size = Size::mib(64) => TEXT;
    /// Queued turns in all; beyond it a new turn gets 429. The length of a large queue is known to within an
    /// eighth of the free places.
    queue_max: u32 = 10_000 => NUMBER;
    /// Queued turns in one conversation.
    conversation_depth_max: u32 = 100 => NUMBER;
    /// Turns that this replica runs at once.
    turns_max: u32 = 64 => NUMBER;
    /// Worker processes at once, idle ones included. Default: 1.5 × `turns_max`, at least 16.
    workers_max: Option<u32> = None => NUMBER;
    /// The user of worker processes: a name, a number, or `UID:GID`. Default: this replica's own.
    worker_user: Option<String> = None => TEXT;
    /// Variables of this process that worker processes receive. Comma-separated in the environment.
    worker_env_pass: Vec<String> = Vec::new() => LIST;
    /// Whether worker processes get their own PID namespace, where the machine allows it.
    worker_namespaces: bool = true => FLAG;
    /// Whether worker processes get a control group of their own where this machine gives one.
    worker_cgroups: bool = true => FLAG;
    /// The largest file that a worker process may write.
    worker_file_max: Size = Size::mib(8 * 1024) => TEXT;
    /// Pooled connections to Postgres; the listener and presence have their own.
    pool_max: u32 = 8 => NUMBER;
    /// Event streams that this replica serves at once.
    streams_max: u32 = 10_000 => NUMBER;
    /// Client connections at once; fewer if the descriptor limit requires it.
    connections_max: u32 = 20_000 => NUMBER;
    /// Client connections from one address. Default: half of all, and no limit for this machine's own addresses.
    connections_per_address_max: Option<u32> = None => NUMBER;
    /// Requests that may wait at once on this replica for a turn's end or an event.
    waits_max: u32 = 10_000 => NUMBER;
    /// Bytes of answers that clients have not read yet, on this replica. A larger answer is served alone.
    unread_max: Size = Size::mib(128) => TEXT;
    /// The share of a common bound that one client token may use, in percent: of the queue, the streams, the
    /// waits, the unread bytes, and, with several client tokens, the turns at once.
    token_share: u32 = 80 => NUMBER;
    /// Turns and conversations that one client token may create in a minute on this replica.
    token_rows_per_minute_max: u32 = 240_000 => NUMBER;
    /// Whether replicas wake each other by NOTIFY. `off` only makes them slower.
    doorbell: Doorbell = Doorbell::On => TEXT;
    /// How long running turns may take to end after SIGTERM.
    drain: Span = Span::seconds(45) => TEXT;
    /// How long ended turns are kept.
    retain: Span = Span::seconds(30 * 24 * 3600) => TEXT;
    /// Interval of the comments that keep a silent stream open.
    keep_alive: Span = Span::seconds(15) => TEXT;
    /// How long a connection may have no request. Longer than any load balancer keeps an idle connection.
    connection_idle_max: Span = Span::seconds(620) => TEXT;
    /// How long a client may read nothing of a stream while its host still acknowledges probes.
    stream_stall_max: Span = Span::seconds(600) => TEXT;
    /// Origins whose pages may call this gateway from a browser, such as `https://chat.example`; empty: none.
    /// Comma-separated in the environment.
    cors_origins: Vec<String> = Vec::new() => LIST;
    /// The log filter: `level` or `target=level,…`.
    log: String = "info".to_owned() => TEXT;
    /// The format of log lines.
    log_format: LogFormat = LogFormat::Text => TEXT;
    /// The OTLP endpoint for traces, such as `http://collector:4318`. Also `OTEL_EXPORTER_OTLP_ENDPOINT`. The
    /// other OpenTelemetry variables are read with the traces.
    otlp_endpoint: Option<String> = None => Key { foreign: Some("OTEL_EXPORTER_OTLP_ENDPOINT"), ..TEXT };
    /// How long workers keep running while Postgres is unreachable.
    postgres_away_max: Span = Span::seconds(30) => TEXT;
    /// Runs agents with runtime `kubernetes`, one pod a conversation, in the cluster of this process or of its
    /// kubeconfig.
    kubernetes: bool = false => FLAG;
    /// The namespace of those pods. Default: this process's own.
    kubernetes_namespace: Option<String> = None => TEXT;
    /// The fleet label of those pods. Gateways with the same name must share a database, and no others may use it.
    kubernetes_fleet: String = "lastword".to_owned() => TEXT;
    /// The Deployment that owns those pods, in their namespace: they are deleted with it.
    kubernetes_owner: Option<String> = None => TEXT;
    /// The URL that workers in those pods call. Default: this replica's own.
    kubernetes_gateway_url: Option<String> = None => TEXT;
}

/// Whether replicas wake each other by NOTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// Replicas ring after each commit.
    On,
    /// Replicas only poll.
    Off,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Readable text.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The largest batch of a remote worker's messages, in bytes.
    pub const BATCH_BYTES_MAX: u64 = 2 * 1024 * 1024;

    /// Turns of one client token that this replica runs at once; `None`: no limit, since there are no other tokens
    /// whose turns need slots.
    pub fn turn_share(&self) -> Option<u32> {
        let share = u64::from(self.turns_max) * u64::from(self.token_share) / 100;
        let share = u32::try_from(share.max(1)).unwrap_or(u32::MAX);
        (self.client_tokens.len() > 1 && share < self.turns_max).then_some(share)
    }

    /// The URL of this replica, once it listens on `bound`.
    pub fn advertised_url(&self, bound: SocketAddr) -> String {
        // Clients cannot connect to the unspecified address.
        let ip = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let fallback = || format!("http://{}", SocketAddr::new(ip, bound.port()));
        self.url.as_ref().map_or_else(fallback, |url| url.trim_end_matches('/').to_owned())
    }

    /// Worker processes at once.
    pub fn workers_max(&self) -> u32 {
        self.workers_max.unwrap_or_else(|| workers_for(self.turns_max))
    }
}

/// The default of `workers_max` for this many turns at once; some of the workers are idle.
pub fn workers_for(turns: u32) -> u32 {
    turns.saturating_add(turns / 2).max(16)
}
