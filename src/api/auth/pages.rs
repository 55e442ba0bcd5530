//! Open routes: how to recognise an honest caller on a route without tokens.
//!
//! A browser on this machine can reach every local port and sends what pages of other sites tell it to; a proxy on
//! this machine forwards requests of anyone. So an open route answers only requests that come from this machine, use
//! one of its loopback names, and were not sent by a foreign page. If the configuration says that something else
//! guards the gateway, only the check of the page applies.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, header};

use crate::{
    api::{cors::Origins, problem::Problem},
    config::Config,
};

/// Headers that proxies add to forwarded requests.
const FORWARDED: [HeaderName; 2] = [header::FORWARDED, header::VIA];
/// Such headers that also contain the address of the original client.
const FORWARDED_FOR: [&str; 2] = ["x-forwarded-for", "x-real-ip"];

/// Access to client routes without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Openness {
    /// No access.
    Closed,
    /// Callers on this machine.
    Local,
    /// All callers that another guard, such as a proxy, lets through.
    GuardedOtherwise,
}

impl Openness {
    /// The openness of the client routes in a configuration.
    pub fn of(config: &Config) -> Openness {
        if !config.client_tokens.is_empty() {
            Openness::Closed
        } else if config.dev {
            Openness::Local
        } else if config.insecure {
            Openness::GuardedOtherwise
        } else if config.listen.ip().is_loopback() {
            Openness::Local
        } else {
            Openness::Closed
        }
    }

    /// The openness of `/metrics`: on a loopback address, callers on this machine may read the metrics.
    pub fn of_metrics(config: &Config) -> Openness {
        match (config.listen.ip().is_loopback(), config.insecure) {
            (false, _) => Openness::Closed,
            (true, false) => Openness::Local,
            (true, true) => Openness::GuardedOtherwise,
        }
    }

    /// Refuses a request that this openness does not allow.
    ///
    /// # Errors
    /// The problem, with a hint for the operator.
    pub fn admits(self, method: &Method, headers: &HeaderMap, origins: &Origins) -> Result<(), Problem> {
        // Pages of the configured CORS origins are allowed to come from another site.
        let is_named = origins.admit(headers);
        match self {
            Openness::Closed => Ok(()),
            Openness::Local => admits_local(method, headers, is_named),
            Openness::GuardedOtherwise if is_named => Ok(()),
            Openness::GuardedOtherwise => {
                let own: Vec<&str> =
                    texts(headers, "host").chain(texts(headers, "x-forwarded-host")).collect();
                let is_own = |authority: &str| own.iter().any(|own| is_same_authority(own, authority));
                admits_page(method, headers, is_own)
            }
        }
    }
}

/// Requires a loopback host name and no proxy. A DNS name that resolves to loopback does not count (DNS rebinding).
fn admits_local(method: &Method, headers: &HeaderMap, is_named: bool) -> Result<(), Problem> {
    let mut hosts = texts(headers, "host").peekable();
    if hosts.peek().is_none() || !hosts.all(is_loopback_authority) {
        return Err(Problem::forbidden(
            "Client routes need no token here, so only requests to a loopback host name are answered. \
             Set client_tokens (`lastword serve`) to reach this gateway by another name.",
        ));
    }
    let is_from_here = |list: &str| list.split(',').all(|address| is_loopback_address(address.trim()));
    let is_forwarded = FORWARDED.iter().any(|name| headers.contains_key(name))
        || FORWARDED_FOR.iter().any(|name| !texts(headers, name).all(is_from_here));
    if is_forwarded {
        return Err(Problem::forbidden(
            "Client routes need no token here, so requests through a proxy are refused. Set client_tokens, \
             or insecure = true if that proxy authenticates its callers.",
        ));
    }
    if is_named { Ok(()) } else { admits_page(method, headers, is_loopback_authority) }
}

/// Refuses requests that a browser sent for a page of another site. A navigation from such a page to a page here is
/// allowed: it changes nothing, and reveals nothing to the other site.
fn admits_page(method: &Method, headers: &HeaderMap, is_own: impl Fn(&str) -> bool) -> Result<(), Problem> {
    let is_foreign = |origin: &str| !origin.split_once("://").is_some_and(|(_, authority)| is_own(authority));
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let is_visit = is_read && texts(headers, "sec-fetch-mode").all(|mode| mode == "navigate");
    let is_cross_site = texts(headers, "sec-fetch-site").any(|site| site == "cross-site") && !is_visit;
    if is_cross_site || texts(headers, "origin").any(is_foreign) {
        return Err(Problem::forbidden(
            "Client routes need no token here, so requests from pages of other sites are refused.",
        ));
    }
    Ok(())
}

/// A header's values; a value that is not text counts as empty.
fn texts<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default())
}

/// Whether both are the same `HOST[:PORT]`, with or without the default port.
fn is_same_authority(one: &str, other: &str) -> bool {
    let bare = |authority: &'_ str| {
        let short = authority.strip_suffix(":80").or_else(|| authority.strip_suffix(":443"));
        short.unwrap_or(authority).to_ascii_lowercase()
    };
    !one.is_empty() && bare(one) == bare(other)
}

/// Whether `HOST[:PORT]` is a loopback name.
fn is_loopback_authority(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, _)) => host,
            None => return false,
        },
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost") || is_loopback_address(host)
}

fn is_loopback_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn is_answered(openness: Openness, method: Method, pairs: &[(&'static str, &str)]) -> bool {
        openness.admits(&method, &headers(pairs), &Origins::default()).is_ok()
    }

    #[test]
    fn routes_are_open_only_where_something_else_guards_them() {
        let beyond = || Config { listen: "0.0.0.0:80".parse().unwrap(), ..Config::default() };
        let tokens = || vec!["t".to_owned()];
        for (config, openness) in [
            (Config::default(), Openness::Local),
            (Config { insecure: true, ..Config::default() }, Openness::GuardedOtherwise),
            (Config { dev: true, insecure: true, ..Config::default() }, Openness::Local),
            (beyond(), Openness::Closed),
            (Config { insecure: true, ..beyond() }, Openness::GuardedOtherwise),
            (Config { operator_tokens: tokens(), ..beyond() }, Openness::Closed),
            (Config { client_tokens: tokens(), ..Config::default() }, Openness::Closed),
            (Config { client_tokens: tokens(), insecure: true, ..beyond() }, Openness::Closed),
            (Config { client_tokens: tokens(), dev: true, ..Config::default() }, Openness::Closed),
        ] {
            assert_eq!(Openness::of(&config), openness, "{config:?}");
        }
        assert_eq!(
            Openness::of_metrics(&Config { client_tokens: tokens(), ..Config::default() }),
            Openness::Local
        );
        assert_eq!(Openness::of_metrics(&Config { insecure: true, ..beyond() }), Openness::Closed);
    }

    #[test]
    fn on_this_machine_only_its_own_names_are_answered() {
        let is_answered = |pairs: &[_]| is_answered(Openness::Local, Method::POST, pairs);
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.0.0.2"] {
            assert!(is_answered(&[("host", host)]), "{host}");
        }
        for host in
            ["example.com", "127.0.0.1.example.com:80", "localhost.example.com", "[::1", "", "0.0.0.0"]
        {
            assert!(!is_answered(&[("host", host)]), "{host}");
            assert!(!is_answered(&[("host", "localhost"), ("host", host)]), "{host} beside a good one");
        }
        assert!(!is_answered(&[]));
    }

    #[test]
    fn on_this_machine_nothing_is_answered_that_came_from_elsewhere() {
        for (name, value, is_let_in) in [
            ("origin", "http://localhost:3000", true),
            ("origin", "http://evil.example", false),
            ("origin", "null", false),
            ("origin", "file://", false),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "none", true),
            ("sec-fetch-site", "cross-site", false),
            ("x-forwarded-for", "203.0.113.9", false),
            ("x-forwarded-for", "127.0.0.1, 203.0.113.9", false),
            ("x-forwarded-for", "unknown", false),
            ("x-forwarded-for", "::1, ::ffff:127.0.0.1", true),
            ("x-real-ip", "203.0.113.9", false),
            ("forwarded", "for=127.0.0.1", false),
            ("via", "1.1 proxy", false),
        ] {
            let sent = [("host", "localhost"), (name, value)];
            assert_eq!(is_answered(Openness::Local, Method::POST, &sent), is_let_in, "{name}: {value}");
        }
    }

    #[test]
    fn a_link_elsewhere_may_lead_here_and_nothing_else_there() {
        let link = [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(is_answered(Openness::Local, Method::GET, &link));
        assert!(!is_answered(Openness::Local, Method::POST, &link), "a form");
        let image = [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert!(!is_answered(Openness::Local, Method::GET, &image));
    }

    #[test]
    fn behind_another_guard_a_page_is_answered_by_its_own_host_alone() {
        for (host, origin, is_let_in) in [
            ("chat.example", "https://chat.example", true),
            ("chat.example:8443", "https://CHAT.example:8443", true),
            ("chat.example:443", "https://chat.example", true),
            ("chat.example", "https://evil.example", false),
            ("chat.example", "https://chat.example.evil.example", false),
            ("chat.example", "https://chat.example:8443", false),
            ("chat.example", "null", false),
            ("", "null", false),
            ("", "https://", false),
        ] {
            let sent = [("host", host), ("origin", origin), ("x-forwarded-for", "203.0.113.9")];
            let is_answered = is_answered(Openness::GuardedOtherwise, Method::POST, &sent);
            assert_eq!(is_answered, is_let_in, "{origin} at {host}");
        }
        // A proxy that calls the gateway by its address sends the name that clients use in a header.
        let sent = [
            ("host", "10.0.0.1:8080"),
            ("x-forwarded-host", "chat.example"),
            ("origin", "https://chat.example"),
        ];
        assert!(is_answered(Openness::GuardedOtherwise, Method::POST, &sent));
        assert!(
            is_answered(Openness::GuardedOtherwise, Method::POST, &[("host", "chat.example")]),
            "no page"
        );
    }
}
