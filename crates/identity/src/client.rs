//! A client of the certificate service.
//!
//! In: an address, a trust bundle, a credential. Out: a new key and a certificate for it.
//!
//! **Invariant:** the key never leaves the process; the server is believed by the bundle only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::IstioCertificateRequest;
use crate::api::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::bundle::{TrustBundle, time_of};
use crate::key::{KeyError, PrivateKey};
use crate::pem;
use crate::spiffe::SpiffeId;
use crate::tls::{self, TlsError};

/// Time for a connection and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the service answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The certificate and the chain below the root, PEM.
    pub chain: String,
    /// The roots to trust, PEM.
    pub roots: String,
}

/// What proves who asks.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A token, sent with the request.
    Token(&'a str),
    /// A certificate that holds still, presented by TLS.
    Certificate(&'a Certificate),
}

/// A key and its certificate.
pub struct Certificate {
    /// The key, P-256 when it is new.
    pub key: PrivateKey,
    /// The certificate and the chain below the root, PEM.
    pub chain: String,
    /// The end of the certificate.
    pub not_after: SystemTime,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address.
    #[error("{0:?} is not HOST:PORT")]
    Address(String),
    /// No connection.
    #[error("connecting to {address}: {why}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// The request.
    #[error("making a request: {0}")]
    Request(String),
    /// The service said no.
    #[error("the certificate service refused: {}", .0.message())]
    Refused(Status),
    /// The service said something else.
    #[error("the certificate service answered without a certificate or without roots")]
    Answer,
    /// A certificate that no proxy would take.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    /// The certificate names nobody.
    #[error("{0}")]
    Identity(String),
    /// A key could not be made, or has another certificate.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The credential cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

// === impl ClientError ===

impl ClientError {
    /// Whether the service was there and did not accept the credential: another may do.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

// === impl Certificate ===

impl Certificate {
    /// A key and a chain, PEM; none if the chain holds no certificate.
    pub fn new(key: PrivateKey, chain: String) -> Option<Self> {
        let not_after = end(chain.as_bytes())?;
        Some(Self { key, chain, not_after })
    }

    /// Who it says that its holder is.
    pub fn id(&self) -> Result<SpiffeId, ClientError> {
        let first = pem::certificates(self.chain.as_bytes()).unwrap_or_default().into_iter().next();
        let (id, _) =
            tls::identity_of(&first.ok_or(ClientError::Answer)?).map_err(ClientError::Identity)?;
        Ok(id)
    }

    /// Whether it is for its key and holds still. A proxy that is given another one refuses all that
    /// comes with it.
    pub fn check(&self) -> Result<(), ClientError> {
        if self.left().is_zero() {
            return Err(ClientError::Unusable("its time is over".to_owned()));
        }
        let chain = pem::certificates(self.chain.as_bytes()).unwrap_or_default();
        let pair = tls::certified(chain, &self.key);
        pair.map_err(|error| ClientError::Unusable(error.to_string()))?;
        Ok(())
    }

    /// How long it holds still; nothing if its time is over.
    pub fn left(&self) -> Duration {
        self.not_after.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Make a key, and get a certificate for it from the service at `address`, which is known by
/// `bundle`. `lifetime`: none = as the service likes. Out: the certificate, and the roots that the
/// service says to trust.
pub async fn obtain(
    address: &str,
    bundle: &TrustBundle,
    credential: Credential<'_>,
    lifetime: Option<Duration>,
) -> Result<(Certificate, TrustBundle), ClientError> {
    let (token, present) = match credential {
        Credential::Token(token) => (Some(token), None),
        Credential::Certificate(present) => {
            let chain = pem::certificates(present.chain.as_bytes()).unwrap_or_default();
            (None, Some((chain, &present.key)))
        }
    };
    let tls = tls::client_config(bundle, present)?;
    let key = PrivateKey::generate()?;
    let csr = csr(&key, None)?;
    let channel = connect(address, tls).await?;
    let Certified { chain, roots } = request(&channel, token, csr, lifetime).await?;
    let certificate = Certificate::new(key, chain).ok_or(ClientError::Answer)?;
    certificate.check()?;
    let roots = TrustBundle::from_pem(roots.as_bytes()).map_err(|_| ClientError::Answer)?;
    Ok((certificate, roots))
}

/// Connect to the control plane at `address`, such as `heddle.heddle-system.svc:15012`.
pub async fn connect(address: &str, tls: ClientConfig) -> Result<Channel, ClientError> {
    let bad = || ClientError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    port.parse::<u16>().map_err(|_| bad())?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| bad())?;
    let connector = TlsConnector::from(Arc::new(tls));
    let dial = address.to_owned();
    let connect = tower::service_fn(move |_: http::Uri| {
        let (connector, name, dial) = (connector.clone(), name.clone(), dial.clone());
        async move {
            let stream = TcpStream::connect(&dial).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // The scheme is that of the inner protocol; TLS is done above.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    endpoint.connect_with_connector(connect).await.map_err(|error| {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        ClientError::Connect { address: address.to_owned(), why }
    })
}

/// A request for a certificate of this key, PEM. `id`: what to ask for; it is proven elsewhere.
pub fn csr(key: &PrivateKey, id: Option<&SpiffeId>) -> Result<String, ClientError> {
    let failed = |error: rcgen::Error| ClientError::Request(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        let uri = id.to_string().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
    }
    let request = params.serialize_request(key).map_err(failed)?;
    Ok(pem::encode("CERTIFICATE REQUEST", request.der()))
}

/// When the first certificate of a PEM text ends; none if there is none.
fn end(chain: &[u8]) -> Option<SystemTime> {
    let certificate = pem::certificates(chain)?.into_iter().next()?;
    let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
    Some(time_of(&parsed.validity().not_after))
}

/// Ask for a certificate. `token`: none = the connection's certificate proves who asks.
/// `lifetime`: none = as the service likes.
pub async fn request(
    channel: &Channel,
    token: Option<&str>,
    csr: String,
    lifetime: Option<Duration>,
) -> Result<Certified, ClientError> {
    let seconds = lifetime.unwrap_or_default().as_secs();
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(seconds).unwrap_or(i64::MAX),
        metadata: None,
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse();
        let mut value: tonic::metadata::AsciiMetadataValue = value
            .map_err(|_| ClientError::Request("the token has characters of no token".to_owned()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = IstioCertificateServiceClient::new(channel.clone());
    let answer = client.create_certificate(request).await.map_err(ClientError::Refused)?;
    let mut parts = answer.into_inner().cert_chain;
    let roots = parts.pop().ok_or(ClientError::Answer)?;
    if parts.is_empty() {
        return Err(ClientError::Answer);
    }
    Ok(Certified { chain: parts.concat(), roots })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;
    use crate::authority::Authority;
    use crate::csr::CertifiedRequest;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The chain of a certificate for a key, issued at some time for an hour.
    fn issued(key: &PrivateKey, now: SystemTime) -> String {
        let id: SpiffeId = "spiffe://cluster.local/ns/a/sa/b".parse().expect("an id");
        let files = Authority::self_signed(id.trust_domain(), now).expect("a root");
        let authority = Authority::from_files(&files, now).expect("usable");
        let csr = csr(key, None).expect("a request");
        let request = CertifiedRequest::check(csr.as_bytes(), &id).expect("a good request");
        let issued = authority.issue(&id, &request, HOUR, now).expect("issued");
        pem::encode("CERTIFICATE", &issued.der)
    }

    #[test]
    fn r80_a_certificate_of_another_key_or_whose_time_is_over_is_not_taken() {
        let now = SystemTime::now();
        let other = PrivateKey::generate().expect("a key");
        for (key, at, good) in
            [(None, now, true), (Some(other), now, false), (None, now - 3 * HOUR, false)]
        {
            let own = PrivateKey::generate().expect("a key");
            let chain = issued(&own, at);
            let certificate = Certificate::new(key.unwrap_or(own), chain).expect("a certificate");
            assert_eq!(certificate.check().is_ok(), good, "{:?}", certificate.check());
        }
    }
}
