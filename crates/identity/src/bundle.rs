//! The roots that a mesh trusts.
//!
//! In: certificates. Out: a set in a fixed order, as PEM and as anchors for TLS.
//!
//! A set from the start: while a root is replaced, the old and the new are both trusted. Whoever
//! rotates adds the new root here first, waits until every proxy holds it, and only then lets the
//! authority sign with it.
//!
//! **Invariant:** equal sets give equal text, whatever order their roots came in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pem;

/// A set of trusted roots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundle {
    roots: BTreeMap<[u8; 32], Root>,
}

/// One root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its subject, for people.
    pub subject: String,
    /// Its end.
    pub not_after: SystemTime,
}

// === impl TrustBundle ===

impl TrustBundle {
    /// Read the certificates of a PEM text; equal ones count once.
    pub fn from_pem(text: &[u8]) -> Result<Self, String> {
        let certificates = pem::certificates(text)
            .ok_or("it holds something else than certificates in PEM, or is damaged")?;
        if certificates.is_empty() {
            return Err("it holds no certificate in PEM".to_owned());
        }
        let mut bundle = Self::default();
        for der in certificates {
            bundle.add(der)?;
        }
        Ok(bundle)
    }

    /// Trust one more root.
    pub(crate) fn add(&mut self, der: CertificateDer<'static>) -> Result<(), String> {
        let (subject, not_after) = {
            let (_, parsed) = X509Certificate::from_der(&der)
                .map_err(|_| "it holds a certificate that is damaged".to_owned())?;
            (parsed.subject().to_string(), time_of(&parsed.validity().not_after))
        };
        self.roots.insert(fingerprint(&der), Root { der, subject, not_after });
        Ok(())
    }

    /// The roots of both.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.roots.extend(other.roots);
        self
    }

    /// Every root, by fingerprint.
    pub fn roots(&self) -> impl Iterator<Item = &Root> {
        self.roots.values()
    }

    /// Whether a certificate is one of the roots.
    pub(crate) fn contains(&self, der: &[u8]) -> bool {
        self.roots.contains_key(&fingerprint(der))
    }

    /// All of them as one PEM text.
    pub fn to_pem(&self) -> String {
        self.roots().map(|root| pem::certificate(&root.der)).collect()
    }

    /// As anchors for TLS.
    pub fn anchors(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        // A root that TLS cannot use would not have passed the checks of the authority.
        store.add_parsable_certificates(self.roots().map(|root| root.der.clone()));
        Arc::new(store)
    }
}

/// SHA-256 of a certificate or key.
pub(crate) fn fingerprint(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, der).as_ref());
    out
}

/// A time of ASN.1; before 1970 it is 1970.
pub(crate) fn time_of(time: &x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}
