//! Why there is no TLS.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::store::pool::denial::{self, Denial};

/// Why there is no TLS.
#[derive(Debug)]
pub(in crate::store::pool) enum TlsFault {
    /// The network, or a Postgres that went away.
    Io(io::Error),
    /// What no wait heals.
    Denied(Denial, String),
}

pub(super) fn fault(why: io::Error) -> TlsFault {
    match why.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(error) => TlsFault::Denied(denial_of(error), error.to_string()),
        None => TlsFault::Io(why),
    }
}

fn denial_of(error: &TlsError) -> Denial {
    use AlertDescription as Alert;
    match error {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => denial::ISSUER,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => denial::EXPIRED,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => denial::EXPIRED,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                denial::HOST
            }
            _ => denial::CERTIFICATE,
        },
        TlsError::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => denial::CLIENT_CERTIFICATE,
        _ => denial::HANDSHAKE,
    }
}
