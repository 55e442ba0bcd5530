//! A parsed database URL: driver options, TLS parameters, and the ways to connect.

use std::str::FromStr as _;

use reqwest::Url;
use sqlx::postgres::PgConnectOptions;

use crate::{
    secret,
    store::{
        error::StoreError,
        pool::{
            denial::{self, Denial},
            tls::{Mode, TlsFault, TlsParameters},
        },
    },
};

/// A parsed URL.
#[derive(Debug)]
pub(super) struct LoginEntry {
    /// The URL's text: a secret.
    pub(super) text: String,
    pub(super) options: PgConnectOptions,
    pub(super) tls: TlsParameters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Plain,
    Tls,
}

fn connect_options(url: &str, application_name: &str) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(|why| StoreError::from_sqlx("connect", why))?;
    Ok(options.application_name(application_name))
}

impl LoginEntry {
    pub(super) fn read(text: &str, application_name: &str) -> Result<LoginEntry, (Denial, String)> {
        let mut url = Url::parse(text).map_err(|why| (denial::URL, why.to_string()))?;
        if !["postgres", "postgresql"].contains(&url.scheme()) {
            return Err((denial::URL, "it does not begin with postgres://".to_owned()));
        }
        if !is_encoded(text) {
            let why = "a % must be written as %25, or be followed by two hexadecimal digits";
            return Err((denial::URL, why.to_owned()));
        }
        let all: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let (ours, drivers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(name, _)| TlsParameters::knows(name));
        url.set_query(None);
        if !drivers.is_empty() {
            url.query_pairs_mut().extend_pairs(drivers);
        }
        let tls = TlsParameters::of(&ours).map_err(|fault| match fault {
            TlsFault::Denied(denial, why) => (denial, why),
            TlsFault::Io(why) => (denial::PARAMETER, why.to_string()),
        })?;
        let options = connect_options(url.as_str(), application_name);
        let options = options.map_err(|why| (denial::URL, secret::hidden(&why.to_string()).into_owned()))?;
        Ok(LoginEntry { text: text.to_owned(), options, tls })
    }

    pub(super) fn host(&self) -> &str {
        self.options.get_host().trim_matches(['[', ']'])
    }

    pub(super) fn is_local(&self) -> bool {
        self.options.get_socket().is_some() || self.host().starts_with('/')
    }

    pub(super) fn is_same_database(&self, other: &LoginEntry) -> bool {
        let place = |entry: &LoginEntry| {
            let options = &entry.options;
            let database = options.get_database().unwrap_or(options.get_username()).to_owned();
            (entry.host().to_owned(), options.get_port(), options.get_socket().cloned(), database)
        };
        place(self) == place(other)
    }

    pub(super) fn ways(&self) -> &'static [Way] {
        match self.tls.mode {
            _ if self.is_local() => &[Way::Plain],
            Mode::Disable => &[Way::Plain],
            Mode::Allow => &[Way::Plain, Way::Tls],
            Mode::Prefer => &[Way::Tls, Way::Plain],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[Way::Tls],
        }
    }
}

/// Whether two hex digits follow each `%`. The driver would accept any other `%` literally, and Postgres would then
/// reject the password as wrong.
fn is_encoded(text: &str) -> bool {
    let mut codes = text.split('%').skip(1);
    codes.all(|code| code.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}
