//! Showing a configuration without its secrets.
//!
//! Owns which fields are secret. It would rather hide too much: an address that cannot be parsed is
//! hidden whole, since nobody can say where in it a password stands.

use reqwest::Url;

use super::Config;

/// What stands in a secret's place.
const HIDDEN: &str = "***";
/// Query parameters that hold secrets.
const SECRET_PARAMETERS: [&str; 7] =
    ["password", "passwd", "sslpassword", "token", "access_token", "api_key", "secret"];

/// The configuration as TOML, secrets hidden.
pub(super) fn to_toml(config: &Config) -> String {
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
    // Every field is a plain value, so this cannot fail; a test writes all of them.
    toml::to_string(&shown).unwrap_or_else(|why| format!("# cannot be shown: {why}\n"))
}

/// Whether this is the address of a web server.
pub(super) fn is_http_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn hide_in_url(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let Ok(mut url) = Url::parse(text) else { return HIDDEN.to_owned() };
    let is_secret = |name: &str| SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str());
    let has_parameter = url.query_pairs().any(|(name, _)| is_secret(&name));
    if url.password().is_none() && !has_parameter {
        return text.to_owned();
    }
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    if has_parameter {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                let value = if is_secret(&name) { HIDDEN.to_owned() } else { value.into_owned() };
                (name.into_owned(), value)
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

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
