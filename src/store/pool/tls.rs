//! TLS to Postgres, compatible with libpq (`docs/decisions/0034`).
//!
//! Owns the TLS parameters of a database URL, the handshake, and the connection from the driver to the TLS stream. The
//! driver's own TLS rejects certificates that libpq accepts and allows no other verifier. So this module makes the
//! handshake, and the driver talks through a private Unix socket within this process, one per connection.
//!
//! Refuses parameters that it cannot honour: an unknown `ssl…` parameter is an error.

mod carried;
mod der;
mod fault;
mod trust;

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig,
    client::ResolvesClientCert,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use self::fault::fault;
use self::trust::{Roots, Trust};
pub(super) use self::{carried::Carried, fault::TlsFault};
use super::denial;

/// URL parameters that this module takes from the driver, by their aliases.
const MODE: [&str; 2] = ["sslmode", "ssl-mode"];
const ROOT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const CERTIFICATE: [&str; 2] = ["sslcert", "ssl-cert"];
const KEY: [&str; 2] = ["sslkey", "ssl-key"];
/// The SSLRequest message; the server answers `S` or `N`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// `sslmode`, from the least to the most protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The TLS parameters of a database URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsParameters {
    pub mode: Mode,
    root: Root,
    /// The client's certificate and its private key.
    identity: Option<(Pem, Pem)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    Absent,
    System,
    Pem(Pem),
}

/// A PEM file, or PEM text in the URL itself.
#[derive(Clone, PartialEq, Eq)]
enum Pem {
    File(PathBuf),
    Text(String),
}

/// By hand, since the text may be a private key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pem::File(path) => path.fmt(f),
            Pem::Text(_) => f.write_str("…"),
        }
    }
}

impl TlsParameters {
    /// Whether a URL parameter belongs to this module and not to the driver.
    pub(super) fn knows(name: &str) -> bool {
        name.starts_with("ssl")
    }

    /// Reads the URL's parameters, then libpq's environment variables.
    pub(super) fn of(parameters: &[(String, String)]) -> Result<TlsParameters, TlsFault> {
        let refuse =
            |name: &str, why: &str| Err(TlsFault::Denied(denial::PARAMETER, format!("{name} {why}")));
        let known = [&MODE[..], &ROOT, &CERTIFICATE, &KEY].concat();
        let stranger =
            parameters.iter().find(|(name, _)| TlsParameters::knows(name) && !known.contains(&name.as_str()));
        if let Some((name, _)) = stranger {
            return refuse(name, "is not supported");
        }
        let value = |names: &[&str], variable: &str| {
            let given = parameters.iter().rev().find(|(name, _)| names.contains(&name.as_str()));
            let given = given.map(|(_, value)| value.clone()).or_else(|| std::env::var(variable).ok());
            given.filter(|value| !value.is_empty())
        };
        let root = match value(&ROOT, "PGSSLROOTCERT") {
            None => Root::Absent,
            Some(name) if name == "system" => Root::System,
            Some(text) => Root::Pem(pem(text)),
        };
        let mode = match value(&MODE, "PGSSLMODE").as_deref() {
            None if root == Root::System => Mode::VerifyFull,
            None | Some("prefer") => Mode::Prefer,
            Some("disable") => Mode::Disable,
            Some("allow") => Mode::Allow,
            Some("require") => Mode::Require,
            Some("verify-ca") => Mode::VerifyCa,
            Some("verify-full") => Mode::VerifyFull,
            Some(_) => return refuse("sslmode", "has an unknown value"),
        };
        if root == Root::System && mode != Mode::VerifyFull {
            return refuse(
                "sslrootcert=system",
                "needs sslmode=verify-full: anybody can get a certificate from a public CA",
            );
        }
        let identity = match (value(&CERTIFICATE, "PGSSLCERT"), value(&KEY, "PGSSLKEY")) {
            (Some(certificate), Some(key)) => Some((pem(certificate), pem(key))),
            (None, None) => None,
            _ => return refuse("sslcert and sslkey", "must be set together"),
        };
        Ok(TlsParameters { mode, root, identity })
    }

    /// Loads the named files and builds the TLS configuration.
    async fn config(&self, host: &str) -> Result<ClientConfig, TlsFault> {
        let provider = provider();
        let roots = match &self.root {
            // As libpq: a configured CA is used in every mode; a missing file is an error only from `verify-ca` on.
            Root::Pem(named) => match named.read("sslrootcert").await {
                Err(_)
                    if self.mode < Mode::VerifyCa && matches!(named, Pem::File(path) if !path.exists()) =>
                {
                    None
                }
                read => Some(roots(certificates("sslrootcert", &read?)?, "sslrootcert")?),
            },
            Root::Absent if self.mode < Mode::VerifyCa => None,
            Root::Absent if self.mode == Mode::VerifyCa => {
                return Err(TlsFault::Denied(denial::NO_ROOT, "sslrootcert is not set".to_owned()));
            }
            Root::Absent | Root::System => Some(system_roots().await?),
        };
        let host = (self.mode == Mode::VerifyFull).then(|| host.to_owned());
        let trust = Trust { provider: provider.clone(), roots, host };
        let config =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let config = config.map_err(|why| TlsFault::Denied(denial::HANDSHAKE, why.to_string()))?;
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(trust));
        Ok(match &self.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                config.with_client_cert_resolver(identity(&provider, certificate, key).await?)
            }
        })
    }

    /// Connects and makes the handshake; `None` if the server does not offer TLS.
    pub(super) async fn open(&self, host: &str, port: u16) -> Result<Option<Carried>, TlsFault> {
        let config = self.config(host).await?;
        let mut stream = TcpStream::connect((host, port)).await.map_err(TlsFault::Io)?;
        stream.set_nodelay(true).map_err(TlsFault::Io)?;
        stream.write_all(&SSL_REQUEST).await.map_err(TlsFault::Io)?;
        match stream.read_u8().await.map_err(TlsFault::Io)? {
            b'S' => {}
            b'N' if self.mode >= Mode::Require => {
                return Err(TlsFault::Denied(denial::NO_TLS, "the server answers N".to_owned()));
            }
            b'N' => return Ok(None),
            _ => return Err(TlsFault::Denied(denial::HANDSHAKE, "the server is not Postgres".to_owned())),
        }
        // A host that is no valid TLS name sends no SNI.
        let unnamed = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let name = ServerName::try_from(host.to_owned()).unwrap_or(unnamed);
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(fault)?;
        Carried::new(stream).map(Some).map_err(TlsFault::Io)
    }
}

/// The crypto provider that `main` installed for this process.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

/// PEM text if the value begins like one, else a path.
fn pem(text: String) -> Pem {
    if text.trim_start().starts_with("-----BEGIN") { Pem::Text(text) } else { Pem::File(text.into()) }
}

impl Pem {
    async fn read(&self, name: &str) -> Result<Vec<u8>, TlsFault> {
        match self {
            Pem::Text(text) => Ok(text.clone().into_bytes()),
            Pem::File(path) => tokio::fs::read(path).await.map_err(|why| {
                TlsFault::Denied(denial::PARAMETER, format!("{name}: cannot read {}: {why}", path.display()))
            }),
        }
    }
}

fn certificates(name: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = read.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsFault::Denied(denial::PARAMETER, format!("{name} holds no PEM certificate")))
}

fn roots(certificates: Vec<CertificateDer<'static>>, name: &str) -> Result<Roots, TlsFault> {
    let roots = Roots::new(certificates);
    roots.ok_or_else(|| TlsFault::Denied(denial::PARAMETER, format!("{name} holds no CA's certificate")))
}

/// Loads the system's CAs; blocks a thread for some milliseconds.
async fn system_roots() -> Result<Roots, TlsFault> {
    let found = tokio::task::spawn_blocking(|| rustls_native_certs::load_native_certs().certs).await;
    roots(found.unwrap_or_default(), "this system")
}

async fn identity(
    provider: &CryptoProvider,
    certificate: &Pem,
    key: &Pem,
) -> Result<Arc<dyn ResolvesClientCert>, TlsFault> {
    let chain = certificates("sslcert", &certificate.read("sslcert").await?)?;
    let refuse = |why: &str| TlsFault::Denied(denial::PARAMETER, format!("sslkey {why}"));
    let key = PrivateKeyDer::from_pem_slice(&key.read("sslkey").await?).map_err(|_| {
        refuse("holds no PEM key, or a key with a passphrase: `openssl pkey` writes a key without one")
    })?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|_| refuse("is of an unsupported kind: use RSA, ECDSA or Ed25519"))?;
    // Not matched against the certificate, which may be of version 1: Postgres checks the pair.
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parameters: &[(&str, &str)]) -> Result<TlsParameters, String> {
        let owned: Vec<_> =
            parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        TlsParameters::of(&owned).map_err(|fault| match fault {
            TlsFault::Denied(_, why) => why,
            TlsFault::Io(why) => why.to_string(),
        })
    }

    #[test]
    fn parameters_mean_what_libpq_takes_them_for() {
        assert_eq!(of(&[]).unwrap().mode, Mode::Prefer);
        assert_eq!(of(&[("sslrootcert", "system")]).unwrap().mode, Mode::VerifyFull);
        assert_eq!(of(&[("sslmode", "disable"), ("sslmode", "verify-ca")]).unwrap().mode, Mode::VerifyCa);
        for wrong in [
            &[("sslmode", "verify_ca")][..],
            &[("sslmode", "require"), ("sslrootcert", "system")],
            &[("sslcert", "a.crt")],
            &[("sslcrl", "a.crl")],
            &[("sslpassword", "s3cret")],
        ] {
            let why = of(wrong).unwrap_err();
            assert!(!why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_key_in_a_url_is_not_shown() {
        let wanted = of(&[("sslcert", "a.crt"), ("sslkey", "-----BEGIN PRIVATE KEY-----\nMII")]).unwrap();
        assert!(!format!("{wanted:?}").contains("MII"), "{wanted:?}");
    }
}
