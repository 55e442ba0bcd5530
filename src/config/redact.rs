//! Shows a configuration without its secrets.
//!
//! Owns which fields are secret. Every other text is checked for the shape of a secret. Hides too much rather than
//! too little: a URL that does not parse is hidden whole, since its password cannot be located.

use std::fmt;

use reqwest::Url;
use toml::{Table, Value};

use super::{keys, settings::Config};
use crate::{
    secret::{self, HIDDEN},
    text,
};

impl Config {
    /// The configuration as TOML, without tokens and passwords. The rest reads back unchanged.
    pub fn redacted(&self) -> String {
        to_toml(self)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: a derived one would put passwords into logs.
        write!(f, "Config {{\n{}}}", self.redacted())
    }
}

/// The configuration as TOML, without secrets and terminal control characters.
fn to_toml(config: &Config) -> String {
    let mut shown = config.clone();
    shown.database_url = hide_in_url(&config.database_url);
    for url in [
        &mut shown.listener_database_url,
        &mut shown.otlp_endpoint,
        &mut shown.url,
        &mut shown.kubernetes_gateway_url,
    ] {
        *url = url.take().map(|url| hide_in_url(&url));
    }
    for tokens in [&mut shown.client_tokens, &mut shown.operator_tokens, &mut shown.worker_tokens] {
        tokens.fill(HIDDEN.to_owned());
    }
    // Every field is a plain value, so this cannot fail; a test serialises all of them.
    let written = written(&shown).unwrap_or_else(|why| format!("# cannot be shown: {why}\n"));
    text::visible(&written).into_owned()
}

/// The fields as TOML, in declaration order.
fn written(shown: &Config) -> Result<String, toml::ser::Error> {
    let mut fields = Table::try_from(shown)?;
    let mut written = String::new();
    for name in keys::key_names() {
        let Some(mut value) = fields.remove(name) else { continue };
        hide_everywhere(&mut value);
        written.push_str(&toml::to_string(&Table::from_iter([(name.to_owned(), value)]))?);
    }
    Ok(written)
}

fn hide_everywhere(value: &mut Value) {
    match value {
        Value::String(text) => *text = secret::suspected(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(hide_everywhere),
        Value::Table(fields) => fields.iter_mut().for_each(|(_, value)| hide_everywhere(value)),
        _ => {}
    }
}

/// Whether the text is an http or https URL with a host.
pub(super) fn is_http_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Whether the text is an origin as browsers send it: scheme, host, and port unless it is the default.
pub(super) fn is_origin(text: &str) -> bool {
    is_http_url(text)
        && !text.contains('*')
        && Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

fn hide_in_url(text: &str) -> String {
    // Without a scheme the user name would parse as the scheme.
    let is_clear = !text.contains('@') || text.contains("://");
    match text.is_empty() || (is_clear && Url::parse(text).is_ok()) {
        true => secret::hidden(text).into_owned(),
        false => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for (text, is_one) in [
            ("https://chat.example", true),
            ("http://localhost:3000", true),
            ("https://chat.example:8443", true),
            ("https://chat.example:443", false),
            ("https://chat.example/", false),
            ("https://chat.example/chat", false),
            ("https://Chat.example", false),
            ("chat.example", false),
            ("https://*.example", false),
            ("null", false),
            ("*", false),
        ] {
            assert_eq!(is_origin(text), is_one, "{text}");
        }
    }

    #[test]
    fn passwords_in_addresses_are_hidden_and_nothing_else() {
        for (text, shown) in [
            ("postgres://me:s3cret@db:5432/app", "postgres://me:***@db:5432/app"),
            ("postgres://me:p%40ss@db/app?sslmode=require", "postgres://me:***@db/app?sslmode=require"),
            ("postgres://db/app?user=me&password=s3cret", "postgres://db/app?user=me&password=***"),
            ("postgres:///app?host=/run/postgresql", "postgres:///app?host=/run/postgresql"),
            ("postgres://me:s3/cret@db/app", "***"),
            ("host=db password=s3cret", "***"),
            ("http://collector:4318", "http://collector:4318"),
            ("", ""),
        ] {
            assert_eq!(hide_in_url(text), shown, "{text}");
        }
    }
}
