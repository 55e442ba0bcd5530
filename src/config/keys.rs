//! The keys of the file, and their variables.

use super::shape::Shape;

/// What the variables of ours begin with.
pub(super) const PREFIX: &str = "LASTWORD_";
/// Variables of ours that are not configuration of a replica.
pub(super) const OTHERS: [&str; 11] = [
    "LASTWORD_AGENT",
    "LASTWORD_CONFIG",
    "LASTWORD_CONVERSATION_ID",
    "LASTWORD_DATA",
    "LASTWORD_POSTGRES_BIN",
    "LASTWORD_TOKEN",
    "LASTWORD_TOKEN_FILE",
    "LASTWORD_URL",
    "LASTWORD_WORKER_ID",
    "LASTWORD_WORKER_NAME",
    "LASTWORD_WORKER_TOKEN_FILE",
];

/// One key of the file and its variables.
pub(super) struct Key {
    /// Its name in the file.
    pub(super) name: &'static str,
    /// What form its value has.
    pub(super) shape: Shape,
    /// Where it is not `LASTWORD_` and the name.
    variable: Option<&'static str>,
    /// A customary variable of other programs; ours wins.
    pub(super) foreign: Option<&'static str>,
    /// Whether `…_FILE` may name a file that holds it.
    pub(super) has_file: bool,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, variable: None, foreign: None, has_file: false }
}

const fn secret(name: &'static str, shape: Shape, foreign: Option<&'static str>) -> Key {
    Key { name, shape, variable: None, foreign, has_file: true }
}

/// Every key; a test holds them against the fields of [`super::Config`].
pub(super) const KEYS: &[Key] = &[
    secret("database_url", Shape::Text, Some("DATABASE_URL")),
    secret("listener_database_url", Shape::Text, None),
    key("database_url_file", Shape::Text),
    key("listener_database_url_file", Shape::Text),
    key("database_schema", Shape::Text),
    key("listen", Shape::Text),
    Key { variable: Some("LASTWORD_ADVERTISED_URL"), ..key("url", Shape::Text) },
    key("data_dir", Shape::Text),
    secret("client_tokens", Shape::List, None),
    secret("operator_tokens", Shape::List, None),
    secret("worker_tokens", Shape::List, None),
    key("insecure", Shape::Flag),
    key("dev", Shape::Flag),
    key("body_max", Shape::Text),
    key("bodies_max", Shape::Text),
    key("queue_max", Shape::Number),
    key("conversation_depth_max", Shape::Number),
    key("turns_max", Shape::Number),
    key("workers_max", Shape::Number),
    key("worker_user", Shape::Text),
    key("worker_env_pass", Shape::List),
    key("worker_namespaces", Shape::Flag),
    key("worker_file_max", Shape::Text),
    key("pool_max", Shape::Number),
    key("streams_max", Shape::Number),
    key("connections_max", Shape::Number),
    key("connections_per_address_max", Shape::Number),
    key("waits_max", Shape::Number),
    key("unread_max", Shape::Text),
    key("token_share", Shape::Number),
    key("token_rows_per_minute_max", Shape::Number),
    key("doorbell", Shape::Text),
    key("drain", Shape::Text),
    key("retain", Shape::Text),
    key("keep_alive", Shape::Text),
    key("connection_idle_max", Shape::Text),
    key("stream_stall_max", Shape::Text),
    key("cors_origins", Shape::List),
    key("log", Shape::Text),
    key("log_format", Shape::Text),
    Key { foreign: Some("OTEL_EXPORTER_OTLP_ENDPOINT"), ..key("otlp_endpoint", Shape::Text) },
    key("postgres_away_max", Shape::Text),
    key("kubernetes", Shape::Flag),
    key("kubernetes_namespace", Shape::Text),
    key("kubernetes_fleet", Shape::Text),
    key("kubernetes_owner", Shape::Text),
    key("kubernetes_gateway_url", Shape::Text),
    key("ablate", Shape::List),
];

impl Key {
    /// Its variable.
    pub(super) fn variable(&self) -> String {
        self.variable.map_or_else(|| format!("{PREFIX}{}", self.name.to_uppercase()), str::to_owned)
    }

    /// The variable that names a file with its value, where there is one.
    pub(super) fn file_variable(&self) -> Option<String> {
        self.has_file.then(|| self.variable() + "_FILE")
    }
}

/// The variables that hold secrets themselves.
pub(super) fn secret_variables() -> Vec<String> {
    let secrets = KEYS.iter().filter(|key| key.has_file);
    secrets.flat_map(|key| [Some(key.variable()), key.foreign.map(str::to_owned)]).flatten().collect()
}

/// The names of all keys, in the order in which they are declared.
pub(super) fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}
