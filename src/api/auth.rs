//! Who may: bearer tokens for clients, operators and workers, and which pages may call a `dev` gateway.
//!
//! Tokens are kept as SHA-256 hashes from the start on, and compared in constant time. Operators'
//! routes always need an operator's token: who may put an agent may run anything.

use super::{Gateway, problem::Problem};
use crate::{
    config::Config,
    token::{self, TokenHash},
};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// No token, or an unknown one.
    Anybody,
    /// May use client routes.
    Client,
    /// May use every route.
    Operator,
}

/// The configured tokens, hashed.
#[derive(Debug)]
pub struct Keys {
    clients: Vec<TokenHash>,
    operators: Vec<TokenHash>,
    workers: Vec<TokenHash>,
    are_client_routes_open: bool,
    is_host_checked: bool,
}

impl Keys {
    /// The keys of a configuration.
    pub fn of(config: &Config) -> Keys {
        let hash = |tokens: &[String]| tokens.iter().map(|token| token::hash(token)).collect();
        let is_guarded_otherwise = config.insecure || config.listen.ip().is_loopback();
        Keys {
            clients: hash(&config.client_tokens),
            operators: hash(&config.operator_tokens),
            workers: hash(&config.worker_tokens),
            are_client_routes_open: config.dev || (config.client_tokens.is_empty() && is_guarded_otherwise),
            is_host_checked: config.dev,
        }
    }

    /// Who sends these headers.
    pub fn role(&self, headers: &HeaderMap) -> Role {
        let Some(token) = bearer(headers) else { return Role::Anybody };
        let hash = token::hash(token);
        // Every key is compared, whichever matches.
        let (is_operator, is_client) = (is_among(&self.operators, &hash), is_among(&self.clients, &hash));
        if is_operator {
            Role::Operator
        } else if is_client {
            Role::Client
        } else {
            Role::Anybody
        }
    }

    /// Whether the token of this hash lets any worker in.
    pub fn is_workers(&self, hash: &TokenHash) -> bool {
        is_among(&self.workers, hash)
    }

    fn admits_client(&self, role: Role) -> Result<(), Problem> {
        if self.are_client_routes_open || role >= Role::Client {
            Ok(())
        } else {
            Err(Problem::unauthorized())
        }
    }

    /// Refuses a request that a page of another site made a browser send. A name that resolves to
    /// this machine does not make a page local (DNS rebinding).
    fn admits_page(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.is_host_checked {
            return Ok(());
        }
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        if !text(header::HOST).is_some_and(is_loopback_authority) {
            return Err(Problem::forbidden("A development gateway answers only under a loopback host name."));
        }
        let is_foreign = |origin: &str| {
            let authority = origin.split_once("://").map(|(_, rest)| rest);
            !authority.is_some_and(is_loopback_authority)
        };
        if text(header::ORIGIN).is_some_and(is_foreign) {
            return Err(Problem::forbidden("A development gateway does not answer pages of other sites."));
        }
        Ok(())
    }
}

/// Lets clients and operators through.
pub async fn client(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let keys = gateway.keys();
    keys.admits_client(keys.role(request.headers()))?;
    Ok(next.run(request).await)
}

/// Lets operators through.
pub async fn operator(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    match gateway.keys().role(request.headers()) {
        Role::Operator => Ok(next.run(request).await),
        Role::Client => Err(Problem::forbidden("This route needs an operator's token.")),
        Role::Anybody => Err(Problem::unauthorized()),
    }
}

/// Keeps pages of other sites from a `dev` gateway, whose client routes are open.
pub async fn page(State(gateway): State<Gateway>, request: Request, next: Next) -> Result<Response, Problem> {
    gateway.keys().admits_page(request.headers())?;
    Ok(next.run(request).await)
}

/// The hash of the bearer token of a request; every route of a worker needs one.
pub fn token_hash(headers: &HeaderMap) -> Result<TokenHash, Problem> {
    bearer(headers).map(token::hash).ok_or_else(Problem::unauthorized)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_among(hashes: &[TokenHash], hash: &TokenHash) -> bool {
    hashes.iter().fold(false, |found, known| found | token::is_same(known, hash))
}

/// Whether `HOST[:PORT]` names this machine itself.
fn is_loopback_authority(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, _)) => host,
            None => return false,
        },
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_opens_its_own_routes_only() {
        let config = Config {
            listen: "0.0.0.0:80".parse().unwrap(),
            client_tokens: vec!["c1".to_owned(), "c2".to_owned()],
            operator_tokens: vec!["o1".to_owned()],
            ..Config::default()
        };
        let keys = Keys::of(&config);
        for (value, role) in [
            ("Bearer c1", Role::Client),
            ("bearer c2", Role::Client),
            ("Bearer o1", Role::Operator),
            ("Bearer c", Role::Anybody),
            ("Basic c1", Role::Anybody),
            ("Bearer", Role::Anybody),
        ] {
            assert_eq!(keys.role(&headers(&[("authorization", value)])), role, "{value}");
        }
        assert!(keys.admits_client(Role::Anybody).is_err());
        assert!(keys.admits_client(Role::Operator).is_ok());
    }

    #[test]
    fn client_routes_are_open_only_where_something_else_guards_them() {
        let beyond = || Config { listen: "0.0.0.0:80".parse().unwrap(), ..Config::default() };
        let tokens = || vec!["t".to_owned()];
        for (config, is_open) in [
            (Config::default(), true),
            (beyond(), false),
            (Config { insecure: true, ..beyond() }, true),
            (Config { operator_tokens: tokens(), ..beyond() }, false),
            (Config { client_tokens: tokens(), ..Config::default() }, false),
            (Config { client_tokens: tokens(), dev: true, ..Config::default() }, true),
        ] {
            assert_eq!(Keys::of(&config).admits_client(Role::Anybody).is_ok(), is_open, "{config:?}");
        }
    }

    #[test]
    fn a_development_gateway_answers_local_pages_only() {
        let keys = Keys::of(&Config { dev: true, ..Config::default() });
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.0.0.2"] {
            assert!(keys.admits_page(&headers(&[("host", host)])).is_ok(), "{host}");
        }
        for host in ["example.com", "127.0.0.1.example.com:80", "localhost.example.com", "[::1", ""] {
            assert!(keys.admits_page(&headers(&[("host", host)])).is_err(), "{host}");
        }
        assert!(keys.admits_page(&headers(&[])).is_err());
        for (origin, is_let_in) in
            [("http://localhost:3000", true), ("http://evil.example", false), ("null", false)]
        {
            let asked = headers(&[("host", "localhost"), ("origin", origin)]);
            assert_eq!(keys.admits_page(&asked).is_ok(), is_let_in, "{origin}");
        }
        assert!(Keys::of(&Config::default()).admits_page(&headers(&[("host", "example.com")])).is_ok());
    }
}
