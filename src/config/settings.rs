//! The settings of one replica, their defaults, and what follows from them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::lever::Lever;
use crate::units::{Size, Span};

/// What one replica is told.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where Postgres is: `postgres://USER:PASSWORD@HOST:PORT/NAME`. Also `DATABASE_URL`, and
    /// `LASTWORD_DATABASE_URL_FILE` for a file that holds it.
    pub database_url: String,
    /// Where Postgres is without a transaction pooler between, for the doorbell and presence;
    /// `database_url` where absent.
    pub listener_database_url: Option<String>,
    /// The schema that everything is in; `lastword` where absent, or where an older release has put it.
    pub database_schema: Option<String>,
    /// The file that `database_url` was read from, which is read again when a login is refused and when it changes.
    pub database_url_file: Option<PathBuf>,
    /// The same for `listener_database_url`.
    pub listener_database_url_file: Option<PathBuf>,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Where other replicas and operators reach this one; `http://` and the address where absent.
    /// Its variable is `LASTWORD_ADVERTISED_URL`, since `LASTWORD_URL` is the gateway a client calls.
    pub url: Option<String>,
    /// Where workspaces live.
    pub data_dir: PathBuf,
    /// Bearer tokens that open the client routes. In the environment separated by commas.
    pub client_tokens: Vec<String>,
    /// Bearer tokens that open every route. In the environment separated by commas.
    pub operator_tokens: Vec<String>,
    /// Bearer tokens that let remote workers in, for any agent. In the environment separated by commas.
    pub worker_tokens: Vec<String>,
    /// Leave the client routes open where that is refused otherwise: beyond loopback, and beside operator tokens.
    /// Something else guards the door: pages of other sites are refused, and nothing else.
    pub insecure: bool,
    /// A replica of `lastword dev`: on loopback only, `Host` checked.
    pub dev: bool,
    /// The largest request body.
    pub body_max: Size,
    /// What this replica holds of request bodies at once, beyond the first 16 KiB of each.
    pub bodies_max: Size,
    /// Turns that may wait, in all; past it a new one gets 429. Of a large queue the length is known within an eighth of
    /// what is free.
    pub queue_max: u32,
    /// Turns that may wait in one conversation.
    pub conversation_depth_max: u32,
    /// Turns that this replica runs at once.
    pub turns_max: u32,
    /// Worker processes that this replica has at once, idle ones included; half again as many as `turns_max`, and at
    /// least 16, where absent.
    pub workers_max: Option<u32>,
    /// Who worker processes run as, where not as this replica: a user's name, its number, or `UID:GID`.
    pub worker_user: Option<String>,
    /// Variables of this process that worker processes find too. In the environment separated by commas.
    pub worker_env_pass: Vec<String>,
    /// Whether worker processes get a process namespace of their own where this machine gives one.
    pub worker_namespaces: bool,
    /// Whether worker processes get a control group of their own where this machine gives one.
    pub worker_cgroups: bool,
    /// The largest file that a worker process may write.
    pub worker_file_max: Size,
    /// Connections to Postgres, beside the listener's and presence's own.
    pub pool_max: u32,
    /// Event streams that this replica serves at once.
    pub streams_max: u32,
    /// Connections that this replica takes at once; fewer where the system permits it too few descriptors.
    pub connections_max: u32,
    /// Connections from one address, whichever that is. Where absent half of all, and of this machine's own any.
    pub connections_per_address_max: Option<u32>,
    /// Requests that may wait for something at once on this replica: for a turn's end, or for an event.
    pub waits_max: u32,
    /// Bytes of answers that their clients have not read, on this replica; one that is larger is served alone.
    pub unread_max: Size,
    /// Which part of a bound that all clients share one client token may take, in percent: of the queue, the streams,
    /// the waits and the unread bytes, and, where there are several client tokens, of the turns at once.
    pub token_share: u32,
    /// Turns and conversations that one client token may make in a minute on this replica.
    pub token_rows_per_minute_max: u32,
    /// Whether replicas wake each other by NOTIFY. `off` is only slower.
    pub doorbell: Doorbell,
    /// How long running turns get to end after a SIGTERM.
    pub drain: Span,
    /// How long ended turns are kept.
    pub retain: Span,
    /// Between two comments that keep a silent stream open.
    pub keep_alive: Span,
    /// How long a connection may have no request: longer than any balancer keeps one for its next.
    pub connection_idle_max: Span,
    /// How long a client may read nothing of a stream, as long as it acknowledges what asks whether it is there.
    pub stream_stall_max: Span,
    /// Origins whose pages may use this gateway from a browser, such as `https://chat.example`; none where empty. In the
    /// environment separated by commas.
    pub cors_origins: Vec<String>,
    /// What is logged, as `level` or `target=level,…`.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Where traces go by OTLP, such as `http://collector:4318`. Also `OTEL_EXPORTER_OTLP_ENDPOINT`. What else the
    /// variables of OpenTelemetry ask for is read with the traces.
    pub otlp_endpoint: Option<String>,
    /// How long workers live on while Postgres cannot be reached.
    pub postgres_away_max: Span,
    /// Run agents whose runtime is `kubernetes`: a pod a conversation. The cluster is the one that this process
    /// runs in, or its kubeconfig's.
    pub kubernetes: bool,
    /// Where those pods run; where this process does, if absent.
    pub kubernetes_namespace: Option<String>,
    /// What those pods are labelled with. Gateways of one name share a database, and no others do.
    pub kubernetes_fleet: String,
    /// The Deployment that those pods belong to, in their namespace: its end is theirs.
    pub kubernetes_owner: Option<String>,
    /// Where the workers in those pods call; this replica's own address where absent.
    pub kubernetes_gateway_url: Option<String>,
    /// For measurements alone: what this replica does without. Shown only where it is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ablate: Vec<Lever>,
}

/// Whether replicas wake each other by NOTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// They ring after each commit.
    On,
    /// They only look by themselves.
    Off,
}

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
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
            // Google's balancers keep theirs for 600 s, the longest of those that are common.
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
            ablate: Vec::new(),
        }
    }
}

impl Config {
    /// The largest batch of a remote worker's messages.
    pub const BATCH_BYTES_MAX: u64 = 2 * 1024 * 1024;

    /// How many turns of one client token this replica runs at once; `None`: as many as there are places, since there
    /// are no other tokens' turns to leave places to.
    pub fn turn_share(&self) -> Option<u32> {
        let share = u64::from(self.turns_max) * u64::from(self.token_share) / 100;
        let share = u32::try_from(share.max(1)).unwrap_or(u32::MAX);
        (self.client_tokens.len() > 1 && share < self.turns_max).then_some(share)
    }

    /// Where others reach this replica, once it listens on `bound`.
    pub fn advertised_url(&self, bound: SocketAddr) -> String {
        // "Every address" is none that anybody can call.
        let ip = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let fallback = || format!("http://{}", SocketAddr::new(ip, bound.port()));
        self.url.as_ref().map_or_else(fallback, |url| url.trim_end_matches('/').to_owned())
    }

    /// Worker processes that this replica has at once.
    pub fn workers_max(&self) -> u32 {
        self.workers_max.unwrap_or_else(|| workers_for(self.turns_max))
    }

    /// Where the doorbell and presence connect.
    pub fn listener_url(&self) -> &str {
        self.listener_database_url.as_deref().unwrap_or(&self.database_url)
    }
}

/// Worker processes for so many turns at once, some of them idle.
pub fn workers_for(turns: u32) -> u32 {
    turns.saturating_add(turns / 2).max(16)
}
