//! Secrets in texts: recognised by their shape, and hidden.
//!
//! Owns the shapes: passwords and tokens in URLs and connection strings, named values, bearer tokens, private keys,
//! and tokens of well-known vendors. Prefers to hide too much. Not a security boundary: a secret of an unknown shape
//! is shown, so a caller that knows a value to be secret hides the whole value.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

/// Replaces a secret.
pub const HIDDEN: &str = "***";

/// Endings of names whose values are secrets.
const NAMES: &str =
    "password|passwd|passphrase|pwd|secret|token|api_?key|access_?key|private_?key|signature|credentials?";

#[allow(clippy::unwrap_used, reason = "each is a constant, and the tests compile it")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

/// A cheap test for texts that may contain a secret; most texts do not match.
static SUSPICIOUS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(&format!(
        r"(?i)://|\b(?:bearer|basic)\s|PRIVATE KEY|(?:{NAMES})[\x22']?\s*[=:]|sk-|gh[opurs]_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza|eyJ|lw[a-z]_"
    ))
});
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\b[a-z][a-z0-9+.-]*://[^\s\x22'<>`|]+"));
/// `password=…`, `"token": "…"`, `client-secret='…'`.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(&format!(r#"(?i)\b([\w-]*(?:{NAMES}))(\s*=\s*|["']\s*:\s*)(?:"[^"]*"|'[^']*'|[^\s,;&"')\]}}]+)"#))
});
static SCHEME: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\b(bearer|basic)(\s+)([a-z0-9._~+/=-]{8,})"));
static KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)")
});
static MADE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"\b(?:sk-[\w-]{16,}|gh[opurs]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|lw[a-z]_[\w-]{20,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)",
    )
});
static RUN: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z0-9]{20,}"));
static PARAMETER: LazyLock<Regex> =
    LazyLock::new(|| pattern(&format!(r"(?i)^(?:[\w.%-]*(?:{NAMES}|auth|authorization)|key|sig)$")));

/// The text with everything hidden that has the shape of a secret.
pub fn hidden(text: &str) -> Cow<'_, str> {
    if !SUSPICIOUS.is_match(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = Cow::Borrowed(text);
    let in_address = |found: &Captures<'_>| hidden_in_list(&found[0]);
    let named = |found: &Captures<'_>| format!("{}{}{HIDDEN}", &found[1], &found[2]);
    let scheme = |found: &Captures<'_>| match is_credential(&found[3]) {
        true => format!("{}{}{HIDDEN}", &found[1], &found[2]),
        false => found[0].to_owned(),
    };
    replace(&mut shown, &KEY, |found| format!("{}{HIDDEN}", &found[1]));
    replace(&mut shown, &ADDRESS, in_address);
    replace(&mut shown, &NAMED, named);
    replace(&mut shown, &SCHEME, scheme);
    replace(&mut shown, &MADE, |_| HIDDEN.to_owned());
    // Borrowed if nothing was hidden: callers use that to test for secrets.
    if shown == text { Cow::Borrowed(text) } else { shown }
}

/// [`hidden`], which also hides runs of 20 or more letters and digits mixed, as in random tokens. For the few texts
/// in which nothing else looks like a token, such as a configuration.
pub fn suspected(text: &str) -> Cow<'_, str> {
    let mut shown = hidden(text);
    replace(&mut shown, &RUN, |found| match is_mixed(&found[0]) {
        true => HIDDEN.to_owned(),
        false => found[0].to_owned(),
    });
    shown
}

fn replace(text: &mut Cow<'_, str>, what: &Regex, with: impl Fn(&Captures<'_>) -> String) {
    if let Cow::Owned(replaced) = what.replace_all(text, with) {
        *text = Cow::Owned(replaced);
    }
}

/// Whether the text after `Bearer` or `Basic` is a credential, not a word of a sentence.
fn is_credential(text: &str) -> bool {
    text.len() >= 20 || text.contains(|c: char| c.is_ascii_digit() || c == '=')
}

fn is_mixed(run: &str) -> bool {
    run.contains(|c: char| c.is_ascii_digit()) && run.contains(|c: char| c.is_ascii_alphabetic())
}

/// Comma-separated URLs, each treated by [`hidden_in_address`].
fn hidden_in_list(addresses: &str) -> String {
    let (mut shown, mut rest) = (String::new(), addresses);
    loop {
        let begun = rest.find("://").map_or(rest.len(), |at| at + 3);
        let next = rest[begun..].find("://").map(|at| begun + at);
        let comma = next.and_then(|next| rest[begun..next].rfind(',')).map(|at| begun + at);
        let Some(comma) = comma else { return shown + &hidden_in_address(rest) };
        shown = shown + &hidden_in_address(&rest[..comma]) + ",";
        rest = &rest[comma + 1..];
    }
}

/// A URL without its password and its secret parameters. Where the end of the password is ambiguous, everything that
/// may belong to it is hidden.
fn hidden_in_address(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (mut authority, mut path) = rest.split_at(end);
    // The password may contain an unescaped `/`, `?` or `#`: then the text before that character is no port.
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    if !authority.contains('@')
        && port.contains(|c: char| !c.is_ascii_digit())
        && let Some(at) = path.rfind('@')
    {
        (authority, path) = rest.split_at(end + at + path[at..].find(['/', '?']).unwrap_or(path.len() - at));
    }
    let shown = match authority.rsplit_once('@') {
        None => authority.to_owned(),
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:{HIDDEN}@{host}"),
            // A token in place of a user name.
            None if user.len() >= 20 => format!("{HIDDEN}@{host}"),
            None => format!("{user}@{host}"),
        },
    };
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let query = query.map(|query| {
        let parts = query.split('&').map(|part| match part.split_once('=') {
            Some((name, _)) if PARAMETER.is_match(name) => format!("{name}={HIDDEN}"),
            _ => part.to_owned(),
        });
        format!("?{}", parts.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{shown}{path}{}", query.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_shape() {
        for (text, shown) in [
            ("postgres://me:s3cret@db:5432/app", "postgres://me:***@db:5432/app"),
            (
                "at postgres://me:p%40ss@db/app?sslmode=require now",
                "at postgres://me:***@db/app?sslmode=require now",
            ),
            ("postgres://db/app?user=me&password=s3cret", "postgres://db/app?user=me&password=***"),
            ("postgres://me:s3/cr?et@db/app", "postgres://me:***@db/app"),
            ("http://one,http://me:s3cret@two,http://three", "http://one,http://me:***@two,http://three"),
            ("postgres://me:s3,cret@one,two/app", "postgres://me:***@one,two/app"),
            ("amqp://:s3cret@queue", "amqp://:***@queue"),
            ("https://0123456789abcdef0123@git.example/x", "https://***@git.example/x"),
            ("https://x/?X-Amz-Signature=abc&a=1", "https://x/?X-Amz-Signature=***&a=1"),
            ("host=db user=me password=s3cret dbname=x", "host=db user=me password=*** dbname=x"),
            ("PGPASSWORD='s3 cret' psql", "PGPASSWORD=*** psql"),
            (r#"{"client_secret": "s3cret", "n": 1}"#, r#"{"client_secret": ***, "n": 1}"#),
            ("Authorization: Bearer abcdef0123", "Authorization: Bearer ***"),
            ("authorization: basic bWU6czNjcmV0", "authorization: basic ***"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----.",
                "-----BEGIN RSA PRIVATE KEY-----***.",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMIIE", "-----BEGIN PRIVATE KEY-----***"),
            ("the key sk-abcdefghijklmnop0123 is", "the key *** is"),
            ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "***"),
            ("eyJhbGciOi.eyJzdWIi.c2ln", "***"),
            ("a worker's lww_AAECAwQFBgcICQoLDA0ODw-_AAECAw came", "a worker's *** came"),
        ] {
            assert_eq!(hidden(text), shown);
            assert!(!hidden(text).contains("s3cret"));
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "",
            "http://collector:4318",
            "postgres:///app?host=/run/postgresql",
            "http://me@host:8080/a/b?c=d",
            "http://host:8080/mail?to=a@b.example",
            "This route needs a valid bearer token.",
            "Bearer authentication is basic information",
            "client_tokens: must be a list of strings",
            "operator_token: unknown, did you mean operator_tokens?",
            "turn_01a203ea5f6a7052876b554c76f7d2cd was accepted",
            "tokens=12 turns=3",
        ] {
            assert_eq!(hidden(text), text);
            assert!(matches!(hidden(text), Cow::Borrowed(_)), "{text}");
        }
        assert_eq!(suspected("/var/lib/lastword-data/workspaces"), "/var/lib/lastword-data/workspaces");
    }

    #[test]
    fn a_random_run_is_suspected() {
        let token = "0123456789abcdef".repeat(4);
        assert_eq!(suspected(&format!("`{token}` is not a number")), "`***` is not a number");
        assert_eq!(suspected("AbCdEfGhIjKlMnOpQrSt0"), "***");
        assert_eq!(hidden(&token), token);
    }
}
