//! Denials: what keeps this process out of Postgres and no wait can heal, each with its remedy.
//!
//! Owns the causes in words that hold no name, no address and no secret: `/readyz` shows them to everybody.
//! At a start a denial ends the process; later it counts as "away", since somebody may put it right meanwhile.

use std::fmt;

/// Why Postgres does not let this process in, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// What is wrong.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl Denial {
    /// Whether statements are refused over every connection, not only new logins.
    pub fn is_of_statements(&self) -> bool {
        *self == RIGHTS
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause)
    }
}

const fn denial(cause: &'static str, remedy: &'static str) -> Denial {
    Denial { cause, remedy }
}

/// 28P01
pub const PASSWORD: Denial = denial(
    "Postgres refuses this user's password",
    "correct the user or the password in the database URL; a file that holds the URL is read again by itself",
);
/// 28000
pub const ENTRY: Denial = denial(
    "Postgres does not let this user in from here",
    "check the user of the database URL, Postgres' pg_hba.conf, and whether that asks for TLS (sslmode) or a client \
     certificate (sslcert, sslkey)",
);
/// 3D000
pub const DATABASE: Denial = denial(
    "there is no database of this name",
    "create the database, or correct its name in the database URL",
);
/// 42501
pub const RIGHTS: Denial = denial(
    "this user lacks a right in the database",
    "grant the user CONNECT and CREATE on the database, or make the schema for the user (create schema lastword \
     authorization USER); a schema that is there must be the user's own, with all that is in it",
);
/// A URL that is none.
pub const URL: Denial = denial(
    "the database URL cannot be read",
    "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…, special characters as %40 and the like",
);
/// A file that holds the URL, and cannot be read.
pub const FILE: Denial = denial(
    "the file that holds the database URL cannot be used",
    "make the file readable, with one database URL in it and nothing else",
);
/// A file that names another server than this process was started with.
pub const MOVED: Denial = denial(
    "the file that holds the database URL names another server or database now",
    "restart this process to have it follow: one process never works on two databases",
);
/// `sslmode` and its companions.
pub const PARAMETER: Denial = denial(
    "a TLS parameter of the database URL cannot be used",
    "correct it: sslmode is disable, allow, prefer, require, verify-ca or verify-full; sslrootcert, sslcert and sslkey \
     name readable PEM files",
);
/// No `sslrootcert` where one is needed.
pub const NO_ROOT: Denial = denial(
    "sslmode=verify-ca needs the certificate of the CA",
    "name its file in sslrootcert, or set sslmode=verify-full to trust the system's CAs",
);
/// The server speaks no TLS.
pub const NO_TLS: Denial = denial(
    "the database URL asks for TLS, and Postgres does not speak it",
    "set ssl = on in Postgres, or sslmode=prefer in the database URL",
);
/// An unknown issuer.
pub const ISSUER: Denial = denial(
    "Postgres' certificate is not from a CA that is trusted here",
    "name the file of its CA's certificate, or of the self-signed certificate itself, in sslrootcert",
);
/// A certificate of another host.
pub const HOST: Denial = denial(
    "Postgres' certificate is for another host",
    "use a host name that the certificate has, or sslmode=verify-ca to trust every certificate of its CA",
);
/// An expired certificate.
pub const EXPIRED: Denial = denial(
    "Postgres' certificate has expired, or is not valid yet",
    "renew the certificate, or set the clock of this machine right",
);
/// Any other fault of a certificate.
pub const CERTIFICATE: Denial = denial(
    "Postgres' certificate cannot be verified",
    "renew the certificate as one of version 3, or go without verification by sslmode=require",
);
/// The server refused ours.
pub const CLIENT_CERTIFICATE: Denial = denial(
    "Postgres refuses the client certificate, or asks for one",
    "name a certificate that Postgres' ssl_ca_file has issued, and its key, in sslcert and sslkey",
);
/// No common ground.
pub const HANDSHAKE: Denial = denial(
    "no TLS connection to Postgres comes about",
    "let Postgres offer TLS 1.2 or 1.3 (ssl_min_protocol_version, ssl_ciphers), with a key of at least 2048 bits",
);

/// The denial that an SQLSTATE stands for, in an answer to a login or to a statement.
pub(in crate::store) fn of_sqlstate(code: &str) -> Option<Denial> {
    Some(match code {
        "28P01" => PASSWORD,
        "28000" => ENTRY,
        "3D000" => DATABASE,
        "42501" => RIGHTS,
        _ => return None,
    })
}
