//! Tickets: credentials for one event stream, valid for a few minutes.
//!
//! A browser's `EventSource` cannot send headers. So the holder of a token makes a ticket for the events of one turn
//! or conversation, and passes the ticket on in a URL. A ticket is not stored: it is a signature under its maker's
//! token, every replica can verify it, and it becomes invalid when that token is no longer configured (decision
//! 0033).

use std::str::FromStr;

use axum::http::Uri;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::token::TokenHash;

/// The prefix of tickets.
const PREFIX: &str = "lws_";
/// The query parameter with the ticket.
const PARAMETER: &str = "ticket";
/// Domain separation: the signature is valid for tickets only.
const DOMAIN: &[u8] = b"lastword stream ticket 1";
const EXPIRY_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 32;

/// A ticket, made here or received.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Expiry in seconds since 1970, by the database's clock.
    expires: i64,
    signature: [u8; SIGNATURE_BYTES],
}

impl Ticket {
    /// A ticket for the events of `subject` (the text of an id), signed with the hash of its maker's token.
    pub fn sign(key: &TokenHash, subject: &str, expires: i64) -> Ticket {
        Ticket { expires, signature: mac(key, subject, expires).finalize().into_bytes().into() }
    }

    /// Whether the token with this hash made the ticket for `subject`. Constant time.
    pub fn is_of(&self, key: &TokenHash, subject: &str) -> bool {
        mac(key, subject, self.expires).verify_slice(&self.signature).is_ok()
    }

    /// When the ticket expires.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.expires, 0)
    }

    /// Whether the ticket has expired.
    pub fn has_expired(&self, now: DateTime<Utc>) -> bool {
        now.timestamp() >= self.expires
    }
}

#[allow(clippy::expect_used, reason = "a key of any length will do")]
fn mac(key: &TokenHash, subject: &str, expires: i64) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key");
    for part in [DOMAIN, subject.as_bytes(), &expires.to_be_bytes()] {
        mac.update(part);
        mac.update(&[0]);
    }
    mac
}

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = [&self.expires.to_be_bytes()[..], &self.signature].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(whole))
    }
}

impl FromStr for Ticket {
    type Err = ();

    fn from_str(text: &str) -> Result<Ticket, ()> {
        let whole = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).ok_or(())?).map_err(drop)?;
        let (expires, signature) = whole.split_at_checked(EXPIRY_BYTES).ok_or(())?;
        let expires = i64::from_be_bytes(expires.try_into().map_err(drop)?);
        Ok(Ticket { expires, signature: signature.try_into().map_err(drop)? })
    }
}

/// Takes the ticket out of a request's URL, so that no later code can log it or pass it on.
pub fn take(uri: &mut Uri) -> Option<String> {
    let query = uri.query()?;
    let is_ticket = |pair: &&str| pair.split('=').next() == Some(PARAMETER);
    let shown = query.split('&').find(is_ticket)?;
    let shown = shown.split_once('=').map_or("", |(_, value)| value).to_owned();
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_ticket(pair)).collect();
    let path = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token;

    #[test]
    fn a_ticket_is_good_for_one_subject_one_token_and_its_time() {
        let (key, other) = (token::hash("one"), token::hash("other"));
        let ticket = Ticket::sign(&key, "turn_1", 1000);
        let text = ticket.to_string();
        assert!(text.parse() == Ok(ticket) && ticket.is_of(&key, "turn_1"), "{text}");
        assert!(
            !ticket.is_of(&key, "turn_2") && !ticket.is_of(&key, "turn_") && !ticket.is_of(&other, "turn_1")
        );
        let later = Ticket { expires: 2000, ..ticket };
        assert!(!later.is_of(&key, "turn_1"), "its time is signed");
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        assert!(!ticket.has_expired(at(999)) && ticket.has_expired(at(1000)));
        for wrong in ["", "lws_", &text[..20], &format!("{text}A"), &text[4..]] {
            assert!(wrong.parse::<Ticket>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_ticket_leaves_the_url_and_nothing_else_does() {
        for (uri, shown, rest) in [
            ("/v1/turns/x/events?ticket=lws_a", Some("lws_a"), "/v1/turns/x/events"),
            ("/e?after=3&ticket=a&_=1", Some("a"), "/e?after=3&_=1"),
            ("/e?ticket=a&ticket=b", Some("a"), "/e"),
            ("/e?ticket", Some(""), "/e"),
            ("/e?after=3&tickets=a", None, "/e?after=3&tickets=a"),
            ("/e", None, "/e"),
        ] {
            let mut left: Uri = uri.parse().unwrap();
            assert_eq!(take(&mut left).as_deref(), shown, "{uri}");
            assert_eq!(left.to_string(), rest);
        }
    }
}
