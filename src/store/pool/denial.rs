//! Denials: reasons why Postgres rejects this process that waiting does not cure, each with its remedy.
//!
//! Owns the texts. They contain no name, no address and no secret, since `/readyz` shows them to everybody. At startup
//! a denial ends the process; later it counts as "away", since an operator may fix the cause meanwhile.

use std::fmt;

/// Why Postgres rejects this process, and the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// What is wrong.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl Denial {
    /// Whether this denial affects statements on existing connections, not only logins.
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

/// SQLSTATE 28P01: wrong password.
pub const PASSWORD: Denial = denial(
    "Postgres refuses this user's password",
    "correct the user or the password in the database URL; a file that holds the URL is read again automatically",
);
/// SQLSTATE 28000: rejected by `pg_hba.conf`, or the role may not log in.
pub const ENTRY: Denial = denial(
    "Postgres does not let this user in from here",
    "check the user of the database URL, Postgres' pg_hba.conf, and whether that asks for TLS (sslmode) or a client \
     certificate (sslcert, sslkey)",
);
/// SQLSTATE 3D000: the database does not exist.
pub const DATABASE: Denial = denial(
    "there is no database of this name",
    "create the database, or correct its name in the database URL",
);
/// SQLSTATE 42501: a right is missing.
pub const RIGHTS: Denial = denial(
    "this user lacks a right in the database",
    "grant the user CONNECT and CREATE on the database, or make the schema for the user (create schema lastword \
     authorization USER); an existing schema must belong to the user, with all that is in it",
);
/// The database URL does not parse.
pub const URL: Denial = denial(
    "the database URL cannot be read",
    "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…, special characters as %40 and the like",
);
/// The file with the database URL cannot be used.
pub const FILE: Denial = denial(
    "the file that holds the database URL cannot be used",
    "make the file readable, with one database URL in it and nothing else",
);
/// The file names another server or database than at startup.
pub const MOVED: Denial = denial(
    "the file that holds the database URL names another server or database now",
    "restart this process: one process never works on two databases",
);
/// An invalid `sslmode`, or an invalid parameter of it.
pub const PARAMETER: Denial = denial(
    "a TLS parameter of the database URL cannot be used",
    "correct it: sslmode is disable, allow, prefer, require, verify-ca or verify-full; sslrootcert, sslcert and sslkey \
     name readable PEM files",
);
/// `sslmode=verify-ca` without `sslrootcert`.
pub const NO_ROOT: Denial = denial(
    "sslmode=verify-ca needs the certificate of the CA",
    "name its file in sslrootcert, or set sslmode=verify-full to trust the system's CAs",
);
/// TLS is required, and the server does not offer it.
pub const NO_TLS: Denial = denial(
    "the database URL asks for TLS, and Postgres does not offer TLS",
    "set ssl = on in Postgres, or sslmode=prefer in the database URL",
);
/// The server's certificate comes from an unknown issuer.
pub const ISSUER: Denial = denial(
    "Postgres' certificate is not from a CA that is trusted here",
    "name the file of its CA's certificate, or of the self-signed certificate itself, in sslrootcert",
);
/// The server's certificate is for another host.
pub const HOST: Denial = denial(
    "Postgres' certificate is for another host",
    "use a host name that the certificate has, or sslmode=verify-ca to trust every certificate of its CA",
);
/// The server's certificate is expired or not yet valid.
pub const EXPIRED: Denial = denial(
    "Postgres' certificate has expired, or is not valid yet",
    "renew the certificate, or set the clock of this machine right",
);
/// Any other fault of the server's certificate.
pub const CERTIFICATE: Denial = denial(
    "Postgres' certificate cannot be verified",
    "renew the certificate as X.509 version 3, or skip verification with sslmode=require",
);
/// The server rejected the client's certificate.
pub const CLIENT_CERTIFICATE: Denial = denial(
    "Postgres refuses the client certificate, or asks for one",
    "name a certificate that Postgres' ssl_ca_file has issued, and its key, in sslcert and sslkey",
);
/// No common TLS version or cipher.
pub const HANDSHAKE: Denial = denial(
    "the TLS connection to Postgres cannot be set up",
    "make Postgres offer TLS 1.2 or 1.3 (ssl_min_protocol_version, ssl_ciphers), with a key of at least 2048 bits",
);

/// The denial for an SQLSTATE, from a login or from a statement; `None` for other states.
pub(in crate::store) fn of_sqlstate(code: &str) -> Option<Denial> {
    Some(match code {
        "28P01" => PASSWORD,
        "28000" => ENTRY,
        "3D000" => DATABASE,
        "42501" => RIGHTS,
        _ => return None,
    })
}
