//! Recognises variables that Kubernetes creates for Services; they are no settings.
//!
//! A pod gets several for each Service of its namespace: a Service named `lastword` yields `LASTWORD_PORT` and
//! others with our prefix. Name and value together distinguish them from a misspelt setting.

use std::net::{IpAddr, SocketAddr};

const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Whether Kubernetes creates such a variable with such a value.
pub(super) fn is_of_service(name: &str, value: &str) -> bool {
    if let Some(service) = name.strip_suffix("_SERVICE_HOST") {
        return is_word(service) && is_address(value);
    }
    // A Service's own name may contain `_PORT`, so every possible end of the name is tried.
    let mut ends = name.match_indices("_PORT").map(|(at, end)| name.split_at(at + end.len()));
    ends.any(|(start, rest)| match start.strip_suffix("_SERVICE_PORT") {
        Some(service) if is_word(service) => {
            is_port(value) && (rest.is_empty() || rest.strip_prefix('_').is_some_and(is_word))
        }
        _ => is_word(start) && is_of_port(rest, value),
    })
}

/// Whether `rest` may follow `…_PORT`: nothing, or `_80_TCP`, optionally with `_PROTO`, `_PORT` or `_ADDR`.
fn is_of_port(rest: &str, value: &str) -> bool {
    if rest.is_empty() {
        return is_url(value, None);
    }
    let mut words = rest.split('_').skip(1);
    let (Some(port), Some(protocol)) = (words.next(), words.next()) else { return false };
    let protocol = protocol.to_ascii_lowercase();
    let is_one = is_port(port) && PROTOCOLS.contains(&protocol.as_str());
    let is_right = match words.next() {
        None => is_url(value, Some((&protocol, port))),
        Some("PROTO") => value == protocol,
        Some("PORT") => value == port,
        Some("ADDR") => is_address(value),
        Some(_) => false,
    };
    is_one && is_right && words.next().is_none()
}

/// Whether the value is like `tcp://10.0.0.1:80`, of this protocol and port if they are given.
fn is_url(value: &str, of: Option<(&str, &str)>) -> bool {
    let Some((protocol, address)) = value.split_once("://") else { return false };
    let Ok(address) = address.parse::<SocketAddr>() else { return false };
    let is_this = of.is_none_or(|(known, port)| known == protocol && port == address.port().to_string());
    PROTOCOLS.contains(&protocol) && address.port() != 0 && is_this
}

fn is_address(value: &str) -> bool {
    value.parse::<IpAddr>().is_ok()
}

fn is_port(value: &str) -> bool {
    value.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Whether the text is a Service's name as it appears in a variable.
fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    !text.is_empty() && !text.ends_with('_') && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_makes_is_known_by_name_and_value() {
        for (name, value) in [
            ("LASTWORD_SERVICE_HOST", "10.0.0.1"),
            ("LASTWORD_SERVICE_HOST", "fd00::1"),
            ("LASTWORD_SERVICE_PORT", "80"),
            ("LASTWORD_SERVICE_PORT_HTTP", "80"),
            ("LASTWORD_SERVICE_PORT_HTTP_2", "80"),
            ("LASTWORD_PORT", "tcp://10.0.0.1:80"),
            ("LASTWORD_PORT", "tcp://[fd00::1]:80"),
            ("LASTWORD_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("LASTWORD_PORT_80_TCP_PROTO", "tcp"),
            ("LASTWORD_PORT_80_TCP_PORT", "80"),
            ("LASTWORD_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("LASTWORD_METRICS_PORT_53_UDP", "udp://10.0.0.1:53"),
            ("LASTWORD_ANYTHING_SERVICE_HOST", "10.0.0.1"),
            ("LASTWORD_ANYTHING_PORT_9090_TCP_ADDR", "10.0.0.1"),
            ("LASTWORD_URL_PORT", "tcp://10.0.0.1:80"),
            ("LASTWORD_PORT_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("LASTWORD_SERVICE_PORT_PORT_80_TCP_PORT", "80"),
        ] {
            assert!(is_of_service(name, value), "{name}={value}");
        }
    }

    #[test]
    fn what_is_only_alike_is_not() {
        for (name, value) in [
            ("LASTWORD_TURN_MAX", "3"),
            ("LASTWORD_PORT", "8080"),
            ("LASTWORD_PORT", "http://10.0.0.1:80"),
            ("LASTWORD_PORT", "tcp://gateway:80"),
            ("LASTWORD_PORT", "tcp://10.0.0.1"),
            ("LASTWORD_SERVICE_HOST", "gateway"),
            ("LASTWORD_SERVICE_HOST", ""),
            ("LASTWORD_SERVICE_PORT", "0"),
            ("LASTWORD_SERVICE_PORT", "http"),
            ("LASTWORD_SERVICE_PORTS", "80"),
            ("LASTWORD_SERVICE_PORT_", "80"),
            ("LASTWORD_HOST", "10.0.0.1"),
            ("LASTWORD__SERVICE_HOST", "10.0.0.1"),
            ("LASTWORD_PORT_80", "tcp://10.0.0.1:80"),
            ("LASTWORD_PORT_80_TCP", "udp://10.0.0.1:80"),
            ("LASTWORD_PORT_80_TCP", "tcp://10.0.0.1:81"),
            ("LASTWORD_PORT_80_HTTP", "http://10.0.0.1:80"),
            ("LASTWORD_PORT_80_TCP_PROTO", "udp"),
            ("LASTWORD_PORT_80_TCP_PORT", "81"),
            ("LASTWORD_PORT_80_TCP_NAME", "http"),
            ("LASTWORD_PORT_80_TCP_ADDR_MORE", "10.0.0.1"),
        ] {
            assert!(!is_of_service(name, value), "{name}={value}");
        }
    }
}
