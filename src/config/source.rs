//! Where a configuration comes from: a file, then the environment, then flags; later sources win.
//!
//! Owns the order. [`super::settings`] has the keys and their variables. Each value is checked alone before all are
//! merged, so that an error names the file and key, or the variable.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    error::ConfigError,
    files::{FILES, held_in},
    keys::OTHERS,
    services::is_of_service,
    settings::{Config, KEYS},
    shape::{Key, PREFIX, ValueShape, shape},
    surroundings::Surroundings,
};

/// The flags of `serve`; they win over every other source.
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

impl Config {
    /// The complete, valid configuration of this process.
    ///
    /// # Errors
    /// An unreadable or invalid value, with its source, or a refusal of [`Config::validate`].
    pub fn load(flags: Overrides) -> Result<Self, ConfigError> {
        let config = Config::read(flags, &Surroundings::of_this_process()?)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration from these surroundings and flags, not validated as a whole.
    ///
    /// # Errors
    /// An unreadable or invalid value, with its source.
    pub fn read(flags: Overrides, around: &Surroundings) -> Result<Self, ConfigError> {
        read(flags, around)
    }
}

/// Reads the three sources and merges them.
fn read(flags: Overrides, around: &Surroundings) -> Result<Config, ConfigError> {
    let mut merged = from_file(flags.config.as_deref(), around)?;
    let by_environment = from_environment(around)?;
    for (url, file) in FILES {
        // If the environment sets the URL directly, the URL does not come from the file that `lastword.toml`
        // names.
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

/// Reads the file named by a flag or `LASTWORD_CONFIG`, which must exist, or `lastword.toml`, which may be
/// missing.
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

/// Reads the variables.
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

/// The variable that sets this key, and its text. Precedence: ours, the file named by ours, the customary one.
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

/// Checks one value alone, so that the error names its source.
fn check(key: &Key, value: &Value, source_name: String) -> Result<(), ConfigError> {
    let alone = Table::from_iter([(key.name.to_owned(), value.clone())]);
    let why = match alone.try_into::<Config>() {
        Ok(_) => return Ok(()),
        // The parser's message would quote the secret.
        Err(_) if key.has_file && key.shape == ValueShape::List => "must be a list of strings".to_owned(),
        Err(_) if key.has_file => "must be a string".to_owned(),
        Err(why) => why.message().to_owned(),
    };
    Err(ConfigError::Invalid { source_name, why })
}

fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let scored = known.map(|k| (strsim::jaro_winkler(name, &k), k));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}
