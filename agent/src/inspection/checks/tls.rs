//! TLS of checks: trust, names, client certificates, and when certificates end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore, SignatureScheme};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::SpecError;
use crate::config::Span;
use crate::event::WallTime;
use crate::inspection::outcome::{ErrorCode, Failure, Phase};
use crate::inspection::run::Run;

/// How a target's TLS is described.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spec {
    /// Certificates that are trusted, in PEM, in place of the system's.
    ca: Option<PathBuf>,
    /// The name that is asked for and that the certificate has to bear, in place of the host.
    server_name: Option<String>,
    /// The client's certificate chain, in PEM.
    certificate: Option<PathBuf>,
    /// Its key, in PEM.
    key: Option<PathBuf>,
    /// Whether the certificate is not looked at but for its end.
    insecure: bool,
    /// How long every certificate of the chain has to be valid still.
    valid_for: Option<Span>,
}

/// How a target's TLS is agreed on.
#[derive(Debug)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    valid_for: Option<Duration>,
    files: Vec<PathBuf>,
}

/// Which protocols are offered (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpn {
    /// None is named, which is HTTP/1.1 where HTTP is spoken.
    None,
    /// HTTP/2, and HTTP/1.1 for those without.
    Either,
    /// HTTP/2.
    Http2,
}

/// A connection, with TLS or without.
#[derive(Debug)]
pub enum Stream {
    /// Without.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Tls {
    /// Reads the files that `spec` names. `path` is the key that holds it.
    pub(super) fn new(spec: &Spec, host: &str, path: &str, alpn: Alpn) -> Result<Self, SpecError> {
        let at = |key: &str| format!("{path}.{key}");
        let name = spec.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            SpecError::at(&at("server_name"), format!("`{}` is no name of a server", name.escape_debug()), "")
        })?;
        let is_usual =
            spec.ca.is_none() && spec.certificate.is_none() && spec.key.is_none() && !spec.insecure;
        let config = if is_usual {
            usual(alpn).map_err(|wrong| SpecError::at(path, wrong, ""))?
        } else {
            own(spec, &at, alpn)?
        };
        let files = [&spec.ca, &spec.certificate, &spec.key].into_iter().flatten().cloned().collect();
        Ok(Self { config, name, valid_for: spec.valid_for.map(|span| span.0), files })
    }

    /// Files that a reload reads again.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Agrees on TLS.
    ///
    /// # Errors
    /// [`ErrorCode::TlsCertificate`] and [`ErrorCode::TlsFailed`].
    pub(super) async fn agree(&self, run: &mut Run, stream: TcpStream) -> Result<Stream, Failure> {
        run.enter(Phase::Tls);
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), stream).await.map_err(|error| failed(&error))?;
        let (_, session) = stream.get_ref();
        run.facts.tls_version = session.protocol_version().map(|version| match version {
            ProtocolVersion::TLSv1_3 => "TLS 1.3",
            ProtocolVersion::TLSv1_2 => "TLS 1.2",
            _ => "TLS",
        });
        run.facts.certificate_until = session.peer_certificates().and_then(first_end);
        self.hold_end(run.facts.certificate_until)?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    fn hold_end(&self, until: Option<WallTime>) -> Result<(), Failure> {
        let (Some(valid_for), Some(until)) = (self.valid_for, until) else { return Ok(()) };
        let left = Duration::from_nanos(until.0.saturating_sub(WallTime::now().0));
        if left >= valid_for {
            return Ok(());
        }
        let said =
            format!("a certificate ends at {until}, and has to be valid for {} still", Span(valid_for));
        Err(Failure::new(ErrorCode::TlsCertificate, said))
    }
}

/// When the first of these certificates ends that does.
fn first_end(chain: &[CertificateDer<'_>]) -> Option<WallTime> {
    let ends = chain.iter().filter_map(|certificate| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(parsed.validity().not_after.timestamp()).ok()
    });
    ends.min().map(|seconds| WallTime(seconds.saturating_mul(1_000_000_000)))
}

fn failed(error: &std::io::Error) -> Failure {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (code, said) = match of_tls {
        Some(rustls::Error::InvalidCertificate(why)) => (ErrorCode::TlsCertificate, why.to_string()),
        Some(other) => (ErrorCode::TlsFailed, other.to_string()),
        None if error.kind() == ErrorKind::UnexpectedEof => {
            (ErrorCode::TlsFailed, "the server closed the connection".to_owned())
        }
        None => (ErrorCode::TlsFailed, error.to_string()),
    };
    Failure::new(code, said)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}

impl Alpn {
    fn offer(self, config: &mut ClientConfig) {
        config.alpn_protocols = match self {
            Self::None => Vec::new(),
            Self::Either => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        };
    }
}

type Usual = OnceLock<Result<Arc<ClientConfig>, String>>;

/// The system's roots and nothing else, read once for each offer: thousands of targets share them.
fn usual(alpn: Alpn) -> Result<Arc<ClientConfig>, String> {
    static USUAL: [Usual; 3] = [Usual::new(), Usual::new(), Usual::new()];
    USUAL[alpn as usize]
        .get_or_init(|| {
            let mut config = match alpn {
                Alpn::None => with_roots_of_the_system()?,
                _ => ClientConfig::clone(&*usual(Alpn::None)?),
            };
            alpn.offer(&mut config);
            Ok(Arc::new(config))
        })
        .clone()
}

fn with_roots_of_the_system() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("the system has no root certificates: install `ca-certificates`, or set `ca`".to_owned());
    }
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn own(spec: &Spec, at: &dyn Fn(&str) -> String, alpn: Alpn) -> Result<Arc<ClientConfig>, SpecError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| SpecError::at(&at("ca"), error.to_string(), ""))?;
    let builder = if spec.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone))
    } else {
        let mut roots = RootCertStore::empty();
        match &spec.ca {
            Some(file) => {
                roots.add_parsable_certificates(certificates(file, &at("ca"))?);
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(SpecError::at(
                &at("ca"),
                "no certificate is trusted",
                "expected certificates in PEM",
            ));
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match (&spec.certificate, &spec.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, &at("certificate"))?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable(key, &at("key"), &error.to_string()))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                SpecError::at(&at("certificate"), error.to_string(), "expected the key's certificate")
            })?
        }
        (Some(_), None) => {
            return Err(SpecError::at(
                &at("certificate"),
                "`key` is missing",
                "expected the file of its key",
            ));
        }
        (None, Some(_)) => {
            return Err(SpecError::at(
                &at("key"),
                "`certificate` is missing",
                "expected the file of its certificate",
            ));
        }
    };
    alpn.offer(&mut config);
    Ok(Arc::new(config))
}

fn certificates(file: &Path, path: &str) -> Result<Vec<CertificateDer<'static>>, SpecError> {
    let wrong = |error: &dyn std::fmt::Display| unreadable(file, path, &error.to_string());
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?.collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(&"it has no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(&error)),
    }
}

fn unreadable(file: &Path, path: &str, why: &str) -> SpecError {
    SpecError::at(path, format!("`{}` cannot be used: {why}", file.display()), "expected a file in PEM")
}

/// Trusts everyone: for targets whose certificate is nobody's.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Stream {
    /// The other end.
    pub(super) fn peer(&self) -> Option<std::net::SocketAddr> {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        stream.peer_addr().ok()
    }

    /// Whether the server chose HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2"))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
