//! The keys of the configuration file, and their variables.

use super::shape::ValueShape;

/// The prefix of our variables.
pub(super) const PREFIX: &str = "LASTWORD_";
/// Variables with our prefix that are not part of a replica's configuration.
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

/// One key, and its variables.
pub(super) struct Key {
    /// The name in the file.
    pub(super) name: &'static str,
    /// The form of its value.
    pub(super) shape: ValueShape,
    /// The variable, if it is not `LASTWORD_` and the key's name.
    variable: Option<&'static str>,
    /// A customary variable of other programs; our own takes precedence.
    pub(super) foreign: Option<&'static str>,
    /// Whether `…_FILE` may name a file that holds the value. True for secrets.
    pub(super) has_file: bool,
}

const fn key(name: &'static str, shape: ValueShape) -> Key {
    Key { name, shape, variable: None, foreign: None, has_file: false }
}

const fn secret(name: &'static str, shape: ValueShape, foreign: Option<&'static str>) -> Key {
    Key { name, shape, variable: None, foreign, has_file: true }
}

/// Every key; a test compares them with the fields of [`super::Config`].
pub(super) const KEYS: &[Key] = &[
    secret("database_url", ValueShape::Text, Some("DATABASE_URL")),
    secret("listener_database_url", ValueShape::Text, None),
    key("database_url_file", ValueShape::Text),
    key("listener_database_url_file", ValueShape::Text),
    key("database_schema", ValueShape::Text),
    key("listen", ValueShape::Text),
    Key { variable: Some("LASTWORD_ADVERTISED_URL"), ..key("url", ValueShape::Text) },
    key("data_dir", ValueShape::Text),
    secret("client_tokens", ValueShape::List, None),
    secret("operator_tokens", ValueShape::List, None),
    secret("worker_tokens", ValueShape::List, None),
    key("insecure", ValueShape::Flag),
    key("dev", ValueShape::Flag),
    key("body_max", ValueShape::Text),
    key("bodies_max", ValueShape::Text),
    key("queue_max", ValueShape::Number),
    key("conversation_depth_max", ValueShape::Number),
    key("turns_max", ValueShape::Number),
    key("workers_max", ValueShape::Number),
    key("worker_user", ValueShape::Text),
    key("worker_env_pass", ValueShape::List),
    key("worker_namespaces", ValueShape::Flag),
    key("worker_cgroups", ValueShape::Flag),
    key("worker_file_max", ValueShape::Text),
    key("pool_max", ValueShape::Number),
    key("streams_max", ValueShape::Number),
    key("connections_max", ValueShape::Number),
    key("connections_per_address_max", ValueShape::Number),
    key("waits_max", ValueShape::Number),
    key("unread_max", ValueShape::Text),
    key("token_share", ValueShape::Number),
    key("token_rows_per_minute_max", ValueShape::Number),
    key("doorbell", ValueShape::Text),
    key("drain", ValueShape::Text),
    key("retain", ValueShape::Text),
    key("keep_alive", ValueShape::Text),
    key("connection_idle_max", ValueShape::Text),
    key("stream_stall_max", ValueShape::Text),
    key("cors_origins", ValueShape::List),
    key("log", ValueShape::Text),
    key("log_format", ValueShape::Text),
    Key { foreign: Some("OTEL_EXPORTER_OTLP_ENDPOINT"), ..key("otlp_endpoint", ValueShape::Text) },
    key("postgres_away_max", ValueShape::Text),
    key("kubernetes", ValueShape::Flag),
    key("kubernetes_namespace", ValueShape::Text),
    key("kubernetes_fleet", ValueShape::Text),
    key("kubernetes_owner", ValueShape::Text),
    key("kubernetes_gateway_url", ValueShape::Text),
];

impl Key {
    /// The key's variable.
    pub(super) fn variable(&self) -> String {
        self.variable.map_or_else(|| format!("{PREFIX}{}", self.name.to_uppercase()), str::to_owned)
    }

    /// The variable that names a file with the value, if there is one.
    pub(super) fn file_variable(&self) -> Option<String> {
        self.has_file.then(|| self.variable() + "_FILE")
    }
}

/// The variables that hold secrets.
pub(super) fn secret_variables() -> Vec<String> {
    let secrets = KEYS.iter().filter(|key| key.has_file);
    secrets.flat_map(|key| [Some(key.variable()), key.foreign.map(str::to_owned)]).flatten().collect()
}

/// The names of all keys, in declaration order.
pub(super) fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}
