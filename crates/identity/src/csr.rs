//! Certificate signing requests.
//!
//! In: PEM from a stranger, and who the stranger proved to be. Out: a public key that the stranger
//! holds the private half of, or why not.
//!
//! What a request asks for is never copied into a certificate. A request that asks for more than
//! it may get is refused all the same: its sender would use the certificate for something else
//! than what it says.
//!
//! **Invariant:** nothing of a request but its public key leaves this file.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

use crate::pem;
use crate::spiffe::SpiffeId;

/// Longest request, in bytes: RSA 4096 takes 1.7 kB.
pub const LONGEST: usize = 16 << 10;

/// A public key whose owner asked for a certificate.
pub struct CertifiedRequest {
    pub(crate) key: SubjectPublicKeyInfo,
    pub(crate) rsa: bool,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More than `LONGEST` bytes.
    #[error("the CSR has {0} bytes; {LONGEST} are allowed")]
    TooLong(usize),
    /// Not exactly one PEM block of a request, or its DER is damaged.
    #[error("the CSR is not one well-formed PEM block CERTIFICATE REQUEST")]
    Malformed,
    /// A key of a sort or size that is not allowed.
    #[error("the CSR's key is not allowed: {0}; use P-256, P-384, or RSA of 2048 to 4096 bits")]
    Key(String),
    /// It is not signed by the key in it.
    #[error("the CSR is not signed by its own key")]
    Signature,
    /// It asks for a name that the caller did not prove.
    #[error("the CSR asks for {0}; the caller's credential proves another identity")]
    ForeignName(String),
    /// It asks to be an authority.
    #[error("the CSR asks for a CA certificate")]
    Authority,
}

// === impl CertifiedRequest ===

impl CertifiedRequest {
    /// Check a request of the workload `caller`.
    pub fn check(text: &[u8], caller: &SpiffeId) -> Result<Self, CsrError> {
        if text.len() > LONGEST {
            return Err(CsrError::TooLong(text.len()));
        }
        let der = pem::request(text).ok_or(CsrError::Malformed)?;
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let rsa = check_key(&info.subject_pki)?;
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        for attribute in info.iter_attributes() {
            if let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() {
                for extension in &asked.extensions {
                    check_extension(extension.parsed_extension(), caller)?;
                }
            }
        }
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|error| CsrError::Key(error.to_string()))?;
        Ok(Self { key, rsa })
    }
}

// === impl CsrError ===

impl CsrError {
    /// One word for counters.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "csr_too_long",
            Self::Malformed => "csr_malformed",
            Self::Key(_) => "csr_key",
            Self::Signature => "csr_signature",
            Self::ForeignName(_) => "csr_foreign_name",
            Self::Authority => "csr_asks_for_ca",
        }
    }
}

/// Whether a key is allowed; true = it is RSA.
fn check_key(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<bool, CsrError> {
    let refused = |why: String| Err(CsrError::Key(why));
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(false),
            Some(curve) => refused(format!("it is on the curve {curve}")),
            None => refused("its curve has no name".to_owned()),
        };
    }
    if *algorithm != OID_PKCS1_RSAENCRYPTION {
        return refused(format!("its algorithm is {algorithm}"));
    }
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if (2048..=4096).contains(&rsa.key_size()) => Ok(true),
        Ok(PublicKey::RSA(rsa)) => refused(format!("it is RSA of {} bits", rsa.key_size())),
        _ => Err(CsrError::Malformed),
    }
}

fn check_extension(asked: &ParsedExtension<'_>, caller: &SpiffeId) -> Result<(), CsrError> {
    match asked {
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            Err(CsrError::Authority)
        }
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
            Err(CsrError::Authority)
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            let own = caller.to_string();
            for name in &names.general_names {
                if !matches!(name, GeneralName::URI(uri) if *uri == own) {
                    let shown: String = format!("{name:?}").chars().take(200).collect();
                    return Err(CsrError::ForeignName(shown));
                }
            }
            Ok(())
        }
        // Nothing of the rest is taken over.
        _ => Ok(()),
    }
}
