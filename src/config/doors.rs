//! Who may call, and from where: the checks of tokens, origins and addresses.

use super::{error::ConfigError, redact, settings::Config};

/// Shortest token accepted when the gateway listens beyond loopback.
const TOKEN_CHARS_MIN: usize = 16;

impl Config {
    /// Checks who may call, and from where.
    pub(super) fn validate_doors(&self) -> Result<(), ConfigError> {
        let refuse = |key, why: &str| Err(ConfigError::Refused { key, why: why.to_owned() });
        let tokens = [
            ("client_tokens", &self.client_tokens),
            ("operator_tokens", &self.operator_tokens),
            ("worker_tokens", &self.worker_tokens),
        ];
        for (key, tokens) in tokens {
            if tokens.iter().any(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
                return refuse(key, "must be made of visible ASCII characters, without blanks");
            }
        }
        for (key, url) in [("url", &self.url), ("kubernetes_gateway_url", &self.kubernetes_gateway_url)] {
            if url.as_ref().is_some_and(|url| !redact::is_http_url(url)) {
                return refuse(key, "must be an http:// or https:// URL");
            }
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !redact::is_origin(origin)) {
            let why = format!(
                "has `{origin}`, which is no origin such as `https://chat.example`: scheme, host and port alone"
            );
            return refuse("cors_origins", &why);
        }
        let is_loopback = self.listen.ip().is_loopback();
        for (key, tokens) in tokens {
            if !is_loopback && tokens.iter().any(|token| token.len() < TOKEN_CHARS_MIN) {
                return refuse(
                    key,
                    "has a token of fewer than 16 characters, which can be guessed from beyond loopback: \
                     create a longer one with `openssl rand -hex 20`, for instance",
                );
            }
        }
        if self.dev && !is_loopback {
            return refuse("listen", "must be a loopback address in dev mode");
        }
        let is_open = self.client_tokens.is_empty() && self.operator_tokens.is_empty();
        if !is_loopback && is_open && !self.insecure {
            return refuse(
                "listen",
                "is beyond loopback, and there are no tokens: set client_tokens and operator_tokens, \
                 or insecure if something else controls access",
            );
        }
        // Operator tokens show that some callers are meant to be kept out.
        let are_clients_let_in = self.client_tokens.is_empty() && !self.operator_tokens.is_empty();
        if is_loopback && are_clients_let_in && !self.insecure && !self.dev {
            return refuse(
                "client_tokens",
                "is empty beside operator_tokens: client routes would be open to everybody who reaches this machine, \
                 for instance through a proxy on it. Set client_tokens, or insecure = true (--insecure) if that is \
                 intended",
            );
        }
        Ok(())
    }
}
