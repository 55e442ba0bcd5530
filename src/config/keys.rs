//! Questions about keys, and variables with our prefix that are no keys. The keys are in [`super::settings`].

use super::settings::KEYS;

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

/// The variables that hold secrets.
pub(super) fn secret_variables() -> Vec<String> {
    let secrets = KEYS.iter().filter(|key| key.has_file);
    secrets.flat_map(|key| [Some(key.variable()), key.foreign.map(str::to_owned)]).flatten().collect()
}

/// The names of all keys, in declaration order.
pub(super) fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}
