//! Where a configuration comes from: a file, then the environment, then flags; the later one wins.
//!
//! Owns the keys, their variables and the errors. Every value is tried alone before all are merged,
//! so that an error can name the file and key, or the variable, that it came from.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    Config,
    files::{FILES, held_in},
    kept,
    services::is_of_service,
    shape::{Shape, shape},
};
use crate::secret;

/// The flags of `serve`; what is given wins over every other source.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The configuration file; must exist.
    pub config: Option<PathBuf>,
    /// [`Config::listen`]
    pub listen: Option<SocketAddr>,
    /// [`Config::url`]
    pub url: Option<String>,
    /// [`Config::database_url`]
    pub database_url: Option<String>,
    /// [`Config::data_dir`]
    pub data_dir: Option<PathBuf>,
    /// [`Config::insecure`]
    pub insecure: Option<bool>,
}

/// What a process finds around itself: passed in, so that tests need not change their own.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    variables: Vec<(String, String)>,
    pub(super) directory: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    ///
    /// # Errors
    /// A variable of ours that is not text.
    pub fn of_this_process() -> Result<Self, ConfigError> {
        Self::new(kept::variables(), PathBuf::new())
    }

    /// These variables, and `lastword.toml` and relative paths in this directory.
    ///
    /// # Errors
    /// A variable of ours that is not text.
    pub fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        directory: impl Into<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let mut ours = Vec::new();
        for (name, value) in variables {
            // A name that is not text cannot be ours.
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(PREFIX) && !KEYS.iter().any(|key| key.foreign == Some(name.as_str())) {
                continue;
            }
            let value = value.into_string().map_err(|_| ConfigError::NotText { variable: name.clone() })?;
            ours.push((name, value));
        }
        Ok(Surroundings { variables: ours, directory: directory.into() })
    }

    /// A variable's value; an empty one counts as not set.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(n, _)| n == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that is named cannot be read.
    #[error("{source_name}: cannot read {}: {why}", secret::suspected(&path.display().to_string()))]
    Unreadable {
        /// Who named the file.
        source_name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: line {line}: {why}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What; the line itself is not shown, since a password may stand in it.
        why: String,
    },
    /// A key or variable that does not exist.
    #[error("{source_name}: unknown{}", nearest.as_ref().map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// `file: key`, or the variable.
        source_name: String,
        /// The nearest one that does.
        nearest: Option<String>,
    },
    /// A value that means nothing.
    #[error("{source_name}: {}", secret::suspected(why))]
    Invalid {
        /// `file: key`, or the variable.
        source_name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A variable of ours that is not text.
    #[error("{variable}: is not UTF-8")]
    NotText {
        /// The variable.
        variable: String,
    },
    /// Values that parse, and that no replica should run with.
    #[error("{key} {why}")]
    Refused {
        /// The key.
        key: &'static str,
        /// Why, and what to do.
        why: String,
    },
}

const PREFIX: &str = "LASTWORD_";
/// Variables of ours that are not configuration of a replica.
const OTHERS: [&str; 11] = [
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
struct Key {
    name: &'static str,
    shape: Shape,
    /// Where it is not `LASTWORD_` and the name.
    variable: Option<&'static str>,
    /// A customary variable of other programs; ours wins.
    foreign: Option<&'static str>,
    /// Whether `…_FILE` may name a file that holds it.
    has_file: bool,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, variable: None, foreign: None, has_file: false }
}

const fn secret(name: &'static str, shape: Shape, foreign: Option<&'static str>) -> Key {
    Key { name, shape, variable: None, foreign, has_file: true }
}

/// Every key; a test holds them against the fields of [`Config`].
const KEYS: &[Key] = &[
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
    key("worker_cgroups", Shape::Flag),
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
    fn variable(&self) -> String {
        self.variable.map_or_else(|| format!("{PREFIX}{}", self.name.to_uppercase()), str::to_owned)
    }

    fn file_variable(&self) -> Option<String> {
        self.has_file.then(|| self.variable() + "_FILE")
    }
}

/// The variables that hold secrets themselves.
pub(super) fn secret_variables() -> Vec<String> {
    let secrets = KEYS.iter().filter(|key| key.has_file);
    secrets.flat_map(|key| [Some(key.variable()), key.foreign.map(str::to_owned)]).flatten().collect()
}

/// Reads the three sources and merges them.
pub(super) fn read(flags: Overrides, around: &Surroundings) -> Result<Config, ConfigError> {
    let mut merged = from_file(flags.config.as_deref(), around)?;
    let by_environment = from_environment(around)?;
    for (url, file) in FILES {
        // A URL that comes from nearer than the file's name does not come from that file.
        if by_environment.contains_key(url) && !by_environment.contains_key(file) {
            merged.remove(file);
        }
    }
    merged.extend(by_environment);
    let mut config: Config = merged.try_into().map_err(|why: toml::de::Error| ConfigError::Invalid {
        source_name: "configuration".to_owned(),
        why: why.to_string(),
    })?;
    let Overrides { config: _, listen, url, database_url, data_dir, insecure } = flags;
    config.listen = listen.unwrap_or(config.listen);
    config.url = url.or(config.url);
    if let Some(url) = database_url {
        (config.database_url, config.database_url_file) = (url, None);
    }
    for file in [&mut config.database_url_file, &mut config.listener_database_url_file].into_iter().flatten()
    {
        *file = around.directory.join(&file);
    }
    config.data_dir = data_dir.unwrap_or(config.data_dir);
    config.insecure = insecure.unwrap_or(config.insecure);
    Ok(config)
}

/// The file named by a flag or `LASTWORD_CONFIG`, which must exist, or `lastword.toml`, which need not.
fn from_file(flag: Option<&Path>, around: &Surroundings) -> Result<Table, ConfigError> {
    let by_variable = || around.get("LASTWORD_CONFIG").map(|path| ("LASTWORD_CONFIG", PathBuf::from(path)));
    let named = flag.map(|path| ("--config", path.to_owned())).or_else(by_variable);
    let is_named = named.is_some();
    let (by, path) = named.unwrap_or_else(|| ("working directory", PathBuf::from("lastword.toml")));
    let text = match std::fs::read_to_string(around.directory.join(&path)) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(Table::new()),
        read => read.map_err(|why| ConfigError::Unreadable {
            source_name: by.to_owned(),
            path: path.clone(),
            why,
        })?,
    };
    let table: Table = text.parse().map_err(|why: toml::de::Error| {
        let before = text.get(..why.span().map_or(0, |span| span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        ConfigError::NotToml { path: path.clone(), line, why: why.message().to_owned() }
    })?;
    for (name, value) in &table {
        let source_name = format!("{}: {name}", path.display());
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let nearest = nearest(name, KEYS.iter().map(|key| key.name.to_owned()));
            return Err(ConfigError::Unknown { source_name, nearest });
        };
        check(key, value, source_name)?;
    }
    let mut table = table;
    for (url, file) in FILES {
        if let Some(Value::String(named)) = table.get(file)
            && !table.contains_key(url)
        {
            let text = held_in(Path::new(named), format!("{}: {file}", path.display()), around)?;
            table.insert(url.to_owned(), Value::String(text));
        }
    }
    Ok(table)
}

/// What the variables say.
fn from_environment(around: &Surroundings) -> Result<Table, ConfigError> {
    refuse_unknown_variables(around)?;
    let mut table = Table::new();
    for key in KEYS {
        let Some((variable, text)) = look_up(key, around)? else { continue };
        let invalid = |why| ConfigError::Invalid { source_name: variable.clone(), why };
        let value = shape(key.shape, &text).map_err(invalid)?;
        check(key, &value, variable)?;
        table.insert(key.name.to_owned(), value);
    }
    Ok(table)
}

fn refuse_unknown_variables(around: &Surroundings) -> Result<(), ConfigError> {
    let known = || {
        let ours = KEYS.iter().flat_map(|key| [Some(key.variable()), key.file_variable()]);
        ours.flatten().chain(OTHERS.map(str::to_owned))
    };
    for (name, value) in &around.variables {
        let is_ours = name.starts_with(PREFIX) && !is_of_service(name, value);
        if is_ours && !known().any(|k| k == *name) {
            return Err(ConfigError::Unknown { source_name: name.clone(), nearest: nearest(name, known()) });
        }
    }
    Ok(())
}

/// The variable that gives this key, and its text: ours, a file named by ours, a customary one.
fn look_up(key: &Key, around: &Surroundings) -> Result<Option<(String, String)>, ConfigError> {
    let variable = key.variable();
    let direct = around.get(&variable).map(str::to_owned);
    let file = key.file_variable().and_then(|name| Some((around.get(&name)?.to_owned(), name)));
    match (direct, file) {
        (Some(_), Some((_, name))) => Err(ConfigError::Invalid {
            why: format!("{variable} is set too: keep one of them"),
            source_name: name,
        }),
        (Some(text), None) => Ok(Some((variable, text))),
        (None, Some((path, name))) => Ok(Some((name.clone(), held_in(Path::new(&path), name, around)?))),
        (None, None) => {
            Ok(key.foreign.and_then(|name| Some((name.to_owned(), around.get(name)?.to_owned()))))
        }
    }
}

/// Tries one value alone, so that the error names its source.
fn check(key: &Key, value: &Value, source_name: String) -> Result<(), ConfigError> {
    let alone = Table::from_iter([(key.name.to_owned(), value.clone())]);
    let why = match alone.try_into::<Config>() {
        Ok(_) => return Ok(()),
        // The parser would quote the value.
        Err(_) if key.has_file && key.shape == Shape::List => "must be a list of texts".to_owned(),
        Err(_) if key.has_file => "must be a text".to_owned(),
        Err(why) => why.message().to_owned(),
    };
    Err(ConfigError::Invalid { source_name, why })
}

fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let scored = known.map(|k| (strsim::jaro_winkler(name, &k), k));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

/// The names of all keys, in the order in which they are declared.
pub(super) fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}
