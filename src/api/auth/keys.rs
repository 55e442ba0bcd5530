//! Keys: the configured tokens, and what each of them opens.
//!
//! Tokens are kept only as SHA-256 hashes, and compared in constant time.

use axum::{
    extract::Request,
    http::{HeaderMap, header},
};

use super::{pages::Openness, ticket::Ticket};
use crate::{
    api::{cors::Origins, problem::Problem},
    config::Config,
    principal::Principal,
    token::{self, TokenHash},
};

/// Routes for health probes, which may use any host name. They reveal nothing about turns.
const HEALTH: [&str; 2] = ["/livez", "/readyz"];

/// The role of a caller.
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
    /// Access to client routes without a token.
    pub(super) openness: Openness,
    /// Access to the metrics without a token.
    pub(super) openness_of_metrics: Openness,
    origins: Origins,
    is_dev: bool,
}

impl Keys {
    /// The keys of a configuration.
    pub fn of(config: &Config) -> Keys {
        let hash = |tokens: &[String]| tokens.iter().map(|token| token::hash(token)).collect();
        Keys {
            clients: hash(&config.client_tokens),
            operators: hash(&config.operator_tokens),
            workers: hash(&config.worker_tokens),
            openness: Openness::of(config),
            openness_of_metrics: Openness::of_metrics(config),
            origins: Origins::of(config),
            is_dev: config.dev,
        }
    }

    /// The role of a request with these headers.
    pub fn role(&self, headers: &HeaderMap) -> Role {
        let Some(token) = bearer(headers) else { return Role::Anybody };
        let hash = token::hash(token);
        // Constant time: all keys are compared, whichever matches.
        let (is_operator, is_client) = (is_among(&self.operators, &hash), is_among(&self.clients, &hash));
        if is_operator {
            Role::Operator
        } else if is_client {
            Role::Client
        } else {
            Role::Anybody
        }
    }

    /// The principal whose share a request with these headers counts against.
    pub fn principal(&self, headers: &HeaderMap) -> Principal {
        let hash = bearer(headers).map(token::hash);
        let known = hash.and_then(|hash| self.whose(|known| token::is_same(known, &hash)));
        known.unwrap_or(Principal::ANONYMOUS)
    }

    /// The principal who made this ticket for `subject`.
    pub(super) fn maker(&self, ticket: &Ticket, subject: &str) -> Option<Principal> {
        self.whose(|known| ticket.is_of(known, subject))
    }

    /// The principal whose token satisfies `is_it`. Constant time: all keys are tested.
    fn whose(&self, is_it: impl Fn(&TokenHash) -> bool) -> Option<Principal> {
        let is_operator = self.operators.iter().fold(false, |found, known| found | is_it(known));
        let places = self.clients.iter().enumerate();
        let client =
            places.fold(None, |found, (at, known)| if is_it(known) { found.or(Some(at)) } else { found });
        match client.map(Principal::client) {
            _ if is_operator => Some(Principal::OPERATOR),
            client => client,
        }
    }

    /// The hash of the request's token. Without a token (open routes), the hash of the empty text: a ticket signed with
    /// that hash opens nothing where tokens are required.
    pub fn token_hash(&self, headers: &HeaderMap) -> TokenHash {
        token::hash(bearer(headers).unwrap_or_default())
    }

    /// Whether this is the hash of a configured worker token.
    pub fn is_workers(&self, hash: &TokenHash) -> bool {
        is_among(&self.workers, hash)
    }

    /// Refuses requests that open routes must not answer. A request with a valid token does not use an open route and
    /// passes, except in `dev` mode, which checks all requests.
    pub(super) fn admits_here(&self, request: &Request) -> Result<(), Problem> {
        let path = request.uri().path();
        let asks_anybody = HEALTH.contains(&path);
        let asks_for_itself = path.starts_with("/v1/worker/");
        let shows_a_token = || self.role(request.headers()) >= Role::Client;
        if asks_anybody || !self.is_dev && (asks_for_itself || shows_a_token()) {
            return Ok(());
        }
        let openness = if self.is_dev { Openness::Local } else { self.openness };
        openness.admits(request.method(), request.headers(), &self.origins)
    }
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_among(hashes: &[TokenHash], hash: &TokenHash) -> bool {
    hashes.iter().fold(false, |found, known| found | token::is_same(known, hash))
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
        for (value, principal) in [
            ("Bearer c1", Principal::client(0)),
            ("Bearer c2", Principal::client(1)),
            ("Bearer o1", Principal::OPERATOR),
            ("Bearer c", Principal::ANONYMOUS),
        ] {
            assert_eq!(keys.principal(&headers(&[("authorization", value)])), principal, "{value}");
        }
    }
}
