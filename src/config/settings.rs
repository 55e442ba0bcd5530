//! The settings of one replica, their defaults, and values derived from them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::units::{Size, Span};

/// The configuration of one replica.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// URL of Postgres: `postgres://USER:PASSWORD@HOST:PORT/NAME`. Also `DATABASE_URL`, and
    /// `LASTWORD_DATABASE_URL_FILE` for a file that holds it.
    pub database_url: String,
    /// URL of Postgres without a transaction pooler, for the doorbell and presence. Default: `database_url`.
    pub listener_database_url: Option<String>,
    /// The schema of all tables. Default: `lastword`, or the schema that an older release has used.
    pub database_schema: Option<String>,
    /// The file that `database_url` was read from. It is read again when it changes, and when a login is refused.
    pub database_url_file: Option<PathBuf>,
    /// Like `database_url_file`, for `listener_database_url`.
    pub listener_database_url_file: Option<PathBuf>,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The URL at which other replicas and operators reach this one. Default: `http://` and the address. The
    /// variable is `LASTWORD_ADVERTISED_URL`, since `LASTWORD_URL` is the gateway that a client calls.
    pub url: Option<String>,
    /// The directory that holds the workspaces.
    pub data_dir: PathBuf,
    /// Bearer tokens for the client routes. Comma-separated in the environment.
    pub client_tokens: Vec<String>,
    /// Bearer tokens for every route. Comma-separated in the environment.
    pub operator_tokens: Vec<String>,
    /// Bearer tokens of remote workers, for any agent. Comma-separated in the environment.
    pub worker_tokens: Vec<String>,
    /// Leaves the client routes open where this is otherwise refused: beyond loopback, and beside operator tokens.
    /// For a gateway that something else protects. Only pages of other sites are still refused.
    pub insecure: bool,
    /// Marks a replica of `lastword dev`: loopback only, `Host` checked.
    pub dev: bool,
    /// The largest request body.
    pub body_max: Size,
    /// Bytes of request bodies held at once, beyond the first 16 KiB of each.
    pub bodies_max: Size,
    /// Queued turns in all; beyond it a new turn gets 429. The length of a large queue is known to within an
    /// eighth of the free places.
    pub queue_max: u32,
    /// Queued turns in one conversation.
    pub conversation_depth_max: u32,
    /// Turns that this replica runs at once.
    pub turns_max: u32,
    /// Worker processes at once, idle ones included. Default: 1.5 × `turns_max`, at least 16.
    pub workers_max: Option<u32>,
    /// The user of worker processes: a name, a number, or `UID:GID`. Default: this replica's own.
    pub worker_user: Option<String>,
    /// Variables of this process that worker processes receive. Comma-separated in the environment.
    pub worker_env_pass: Vec<String>,
    /// Whether worker processes get their own PID namespace, where the machine allows it.
    pub worker_namespaces: bool,
    /// Whether worker processes get a control group of their own where this machine gives one.
    pub worker_cgroups: bool,
    /// The largest file that a worker process may write.
    pub worker_file_max: Size,
    /// Pooled connections to Postgres; the listener and presence have their own.
    pub pool_max: u32,
    /// Event streams that this replica serves at once.
    pub streams_max: u32,
    /// Client connections at once; fewer if the descriptor limit requires it.
    pub connections_max: u32,
    /// Client connections from one address. Default: half of all, and no limit for this machine's own addresses.
    pub connections_per_address_max: Option<u32>,
    /// Requests that may wait at once on this replica for a turn's end or an event.
    pub waits_max: u32,
    /// Bytes of answers that clients have not read yet, on this replica. A larger answer is served alone.
    pub unread_max: Size,
    /// The share of a common bound that one client token may use, in percent: of the queue, the streams, the
    /// waits, the unread bytes, and, with several client tokens, the turns at once.
    pub token_share: u32,
    /// Turns and conversations that one client token may create in a minute on this replica.
    pub token_rows_per_minute_max: u32,
    /// Whether replicas wake each other by NOTIFY. `off` only makes them slower.
    pub doorbell: Doorbell,
    /// How long running turns may take to end after SIGTERM.
    pub drain: Span,
    /// How long ended turns are kept.
    pub retain: Span,
    /// Interval of the comments that keep a silent stream open.
    pub keep_alive: Span,
    /// How long a connection may have no request. Longer than any load balancer keeps an idle connection.
    pub connection_idle_max: Span,
    /// How long a client may read nothing of a stream while its host still acknowledges probes.
    pub stream_stall_max: Span,
    /// Origins whose pages may call this gateway from a browser, such as `https://chat.example`; empty: none.
    /// Comma-separated in the environment.
    pub cors_origins: Vec<String>,
    /// The log filter: `level` or `target=level,…`.
    pub log: String,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The OTLP endpoint for traces, such as `http://collector:4318`. Also `OTEL_EXPORTER_OTLP_ENDPOINT`. The
    /// other OpenTelemetry variables are read with the traces.
    pub otlp_endpoint: Option<String>,
    /// How long workers keep running while Postgres is unreachable.
    pub postgres_away_max: Span,
    /// Runs agents with runtime `kubernetes`, one pod a conversation, in the cluster of this process or of its
    /// kubeconfig.
    pub kubernetes: bool,
    /// The namespace of those pods. Default: this process's own.
    pub kubernetes_namespace: Option<String>,
    /// The fleet label of those pods. Gateways with the same name must share a database, and no others may use it.
    pub kubernetes_fleet: String,
    /// The Deployment that owns those pods, in their namespace: they are deleted with it.
    pub kubernetes_owner: Option<String>,
    /// The URL that workers in those pods call. Default: this replica's own.
    pub kubernetes_gateway_url: Option<String>,
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

impl Default for Config {
    fn default() -> Self {
        Config {
            database_url: String::new(),
            listener_database_url: None,
            database_schema: None,
            database_url_file: None,
            listener_database_url_file: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            url: None,
            data_dir: PathBuf::from("lastword-data"),
            client_tokens: Vec::new(),
            operator_tokens: Vec::new(),
            worker_tokens: Vec::new(),
            insecure: false,
            dev: false,
            body_max: Size::mib(1),
            bodies_max: Size::mib(64),
            queue_max: 10_000,
            conversation_depth_max: 100,
            turns_max: 64,
            workers_max: None,
            worker_user: None,
            worker_env_pass: Vec::new(),
            worker_namespaces: true,
            worker_cgroups: true,
            worker_file_max: Size::mib(8 * 1024),
            pool_max: 8,
            streams_max: 10_000,
            connections_max: 20_000,
            connections_per_address_max: None,
            waits_max: 10_000,
            unread_max: Size::mib(128),
            token_share: 80,
            token_rows_per_minute_max: 240_000,
            doorbell: Doorbell::On,
            drain: Span::seconds(45),
            retain: Span::seconds(30 * 24 * 3600),
            keep_alive: Span::seconds(15),
            // Google's load balancers keep idle connections for 600 s, the longest of the common ones.
            connection_idle_max: Span::seconds(620),
            stream_stall_max: Span::seconds(600),
            cors_origins: Vec::new(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            postgres_away_max: Span::seconds(30),
            kubernetes: false,
            kubernetes_namespace: None,
            kubernetes_fleet: "lastword".to_owned(),
            kubernetes_owner: None,
            kubernetes_gateway_url: None,
        }
    }
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

    /// The URL that the doorbell and presence connect to.
    pub fn listener_url(&self) -> &str {
        self.listener_database_url.as_deref().unwrap_or(&self.database_url)
    }
}

/// The default of `workers_max` for this many turns at once; some of the workers are idle.
pub fn workers_for(turns: u32) -> u32 {
    turns.saturating_add(turns / 2).max(16)
}
