//! Verification of the server's certificate by libpq's rules.
//!
//! webpki verifies chains. This module adds what libpq accepts and webpki rejects: certificates of version 1, which
//! PostgreSQL's manual has produced for many years; a self-signed certificate that is itself trusted; and names in the
//! subject, if the certificate has no others. A version 1 certificate must be issued directly by a trusted CA, without
//! an intermediate.
//!
//! Without roots (`prefer`, `require`) any certificate is accepted, but the server must prove that it has the key.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::ParsedCertificate,
};
use webpki::RawPublicKeyEntity;

use super::der::{self, Parts};

/// The requirements on a server's certificate.
#[derive(Debug)]
pub(super) struct Trust {
    pub provider: Arc<CryptoProvider>,
    /// `None`: any certificate.
    pub roots: Option<Roots>,
    /// The host that the certificate must name; `None`: any.
    pub host: Option<String>,
}

/// Trusted CAs, and individually trusted certificates.
#[derive(Debug)]
pub(super) struct Roots {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// `None` if no certificate is usable.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Option<Roots> {
        let mut store = RootCertStore::empty();
        let (used, _) = store.add_parsable_certificates(certificates.iter().cloned());
        (used > 0).then_some(Roots { store, certificates })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parts = der::read(certificate).ok_or(CertificateError::BadEncoding)?;
        if parts.version == 1 || roots.certificates.iter().any(|root| **root == **certificate) {
            is_valid_at(&parts, now)?;
            self.is_trusted_by_itself(roots, certificate, &parts)?;
        } else {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            match verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, between, now, algorithms) {
                Err(why) if is_for_a_ca(&why) => self.is_trusted_by_itself(roots, certificate, &parts)?,
                verified => verified?,
            }
        }
        if let Some(host) = &self.host {
            is_for(host, certificate, &parts)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.has_key(message, certificate, signed, usize::MAX)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // TLS 1.3 has no PKCS#1 signatures, and there a scheme stands for its first algorithm only.
        if matches!(signed.scheme, SignatureScheme::RSA_PKCS1_SHA256 | SignatureScheme::RSA_PKCS1_SHA384)
            || matches!(signed.scheme, SignatureScheme::RSA_PKCS1_SHA512 | SignatureScheme::RSA_PKCS1_SHA1)
        {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.has_key(message, certificate, signed, 1)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Trust {
    /// Whether a trusted CA issued the certificate directly, or the certificate is itself trusted and self-signed.
    fn is_trusted_by_itself(
        &self,
        roots: &Roots,
        certificate: &CertificateDer<'_>,
        parts: &Parts<'_>,
    ) -> Result<(), Error> {
        let issuers = roots.certificates.iter().filter(|root| {
            let is_itself = ***root == **certificate;
            let constraints =
                webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.name_constraints.is_some());
            // Only webpki can check the constraints of a CA.
            is_itself || matches!(constraints, Ok(false))
        });
        for issuer in issuers.filter_map(|root| der::read(root)) {
            if issuer.subject == parts.issuer && self.has_signed(&issuer, parts) {
                return Ok(());
            }
        }
        Err(CertificateError::UnknownIssuer.into())
    }

    fn has_signed(&self, issuer: &Parts<'_>, parts: &Parts<'_>) -> bool {
        let key = SubjectPublicKeyInfoDer::from(issuer.key);
        let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
        let all = self.provider.signature_verification_algorithms.all.iter();
        all.filter(|algorithm| algorithm.signature_alg_id().as_ref() == parts.algorithm)
            .any(|algorithm| key.verify_signature(*algorithm, parts.signed, parts.signature).is_ok())
    }

    /// Whether the server has the certificate's key: verifies the signature of the handshake.
    fn has_key(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        algorithms_max: usize,
    ) -> Result<HandshakeSignatureValid, Error> {
        let parts = der::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(parts.key);
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
        let mapping = self.provider.signature_verification_algorithms.mapping;
        let known = mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let algorithms = known.map_or(&[][..], |(_, algorithms)| algorithms).iter().take(algorithms_max);
        for algorithm in algorithms {
            if key.verify_signature(*algorithm, message, signed.signature()).is_ok() {
                return Ok(HandshakeSignatureValid::assertion());
            }
        }
        Err(CertificateError::BadSignature.into())
    }
}

/// Whether webpki rejects the certificate only because it is a CA's. webpki has checked the validity dates by then;
/// libpq accepts such a certificate.
fn is_for_a_ca(why: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = why else { return false };
    matches!(other.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn is_valid_at(parts: &Parts<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    match () {
        () if now < parts.valid.start => Err(CertificateError::NotValidYet.into()),
        () if now > parts.valid.end => Err(CertificateError::Expired.into()),
        () => Ok(()),
    }
}

/// Checks the host name: against the certificate's names or, if it has none, against the subject.
fn is_for(host: &str, certificate: &CertificateDer<'_>, parts: &Parts<'_>) -> Result<(), Error> {
    if parts.version > 1 {
        let name = ServerName::try_from(host).map_err(|_| CertificateError::NotValidForName)?;
        match verify_server_name(&ParsedCertificate::try_from(certificate)?, &name) {
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented, ..
            })) if presented.is_empty() => {}
            judged => return judged,
        }
    }
    let is_named = parts.common_name.is_some_and(|name| matches(name, host));
    is_named.then_some(()).ok_or_else(|| CertificateError::NotValidForName.into())
}

/// Compares a name with the host; `*.example.org` covers one label.
fn matches(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(below), Some((label, rest))) = (name.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    !label.is_empty()
        && below.contains('.')
        && below.eq_ignore_ascii_case(rest)
        && host.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_stands_for_a_host_or_for_one_label() {
        for (name, host, wanted) in [
            ("db.example.org", "DB.example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.org", "example.org", false),
            ("*", "localhost", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("db.example.org", "db", false),
        ] {
            assert_eq!(matches(name, host), wanted, "{name} {host}");
        }
    }
}
