//! TLS of the control plane.
//!
//! In: an authority. Out: settings of a TLS server whose certificate the authority issued, and
//! that knows its clients by theirs.
//!
//! **Invariant:** TLS 1.3 only; a client's certificate is checked by the roots of the bundle; a
//! session is never resumed, so that each connection proves itself anew.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::Authority;
use crate::bundle::{TrustBundle, time_of};
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;

/// Longest life of the server's own certificate.
const OWN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// Who the server is.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// Its id.
    pub id: SpiffeId,
    /// Host names and IP addresses that clients dial.
    pub names: Vec<String>,
}

/// A server's settings, and how long they hold.
pub struct ServerTls {
    /// For each new connection.
    pub config: Arc<ServerConfig>,
    /// End of its certificate.
    pub not_after: SystemTime,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("setting up TLS: {0}")]
pub struct TlsError(String);

// === impl ServerTls ===

impl ServerTls {
    /// A new key and certificate of this authority.
    pub fn new(
        authority: &Authority,
        identity: &ServerIdentity,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let failed = |error: &dyn std::fmt::Display| TlsError(error.to_string());
        let key = PrivateKey::generate().map_err(|e| failed(&e))?;
        let issued = authority
            .issue_server(&identity.id, &identity.names, &key, OWN_LIFETIME, now)
            .map_err(|e| failed(&e))?;
        let mut chain = vec![issued.der];
        chain.extend(authority.chain().iter().cloned());
        let anchors = authority.roots().anchors();
        let verifier = WebPkiClientVerifier::builder_with_provider(anchors, provider())
            // Those without a certificate must send a token; that is checked per call.
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certified(chain, &key)?);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), not_after: issued.not_after })
    }
}

/// The one provider of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// Settings of a client of the control plane; with a certificate chain and its key it proves who
/// it is.
pub fn client_config(
    bundle: &TrustBundle,
    certificate: Option<(Vec<CertificateDer<'static>>, &PrivateKey)>,
) -> Result<ClientConfig, TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .with_root_certificates(bundle.anchors());
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_cert_resolver(certified(chain, key)?),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The id in a certificate that was verified, and the certificate's end.
pub(crate) fn identity_of(certificate: &[u8]) -> Result<(SpiffeId, SystemTime), String> {
    let damaged = |_| "the certificate is damaged".to_owned();
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| damaged(()))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| damaged(()))?
        .map(|names| names.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("the certificate has not exactly one URI SAN".to_owned());
    };
    let id: SpiffeId =
        uri.parse().map_err(|error| format!("the certificate's URI SAN: {error}"))?;
    Ok((id, time_of(&parsed.validity().not_after)))
}

/// A chain and its key, of one pair. The copy of the key that is made on the way is wiped.
pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let der = key.to_der().map_err(|error| TlsError(error.to_string()))?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()));
    let failed = |error: rustls::Error| TlsError(error.to_string());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(failed)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(failed)?;
    Ok(Arc::new(certified.into()))
}
