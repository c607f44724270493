//! Private keys.
//!
//! In: PEM in PKCS#8, PKCS#1 or SEC1, or chance. Out: signatures, and PEM for a file.
//!
//! **Invariant:** the key lives in memory of the cryptographic library, which wipes it when it is
//! dropped; every text of it is wiped too; nothing prints it.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::pem;

/// A private key: P-256, P-384 or RSA.
pub struct PrivateKey(Kind);

enum Kind {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// What a key is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// RSA with a modulus of so many bits.
    Rsa(usize),
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM block of a private key.
    #[error("no private key in PEM (PKCS#8, PKCS#1 or SEC1) is there")]
    NoKey,
    /// A key of another sort.
    #[error(
        "the private key is damaged, encrypted or of a sort that is not supported; use P-256, P-384 or RSA of 2048 bits or more"
    )]
    Unsupported,
    /// The cryptographic library failed.
    #[error("the cryptographic library could not make a key")]
    Library,
}

// === impl PrivateKey ===

impl PrivateKey {
    /// A new P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        Ok(Self(Kind::P256(key.map_err(|_| KeyError::Library)?)))
    }

    /// Read the only private key of a text.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateKeyDer::from_pem_slice(text).map_err(|_| KeyError::NoKey)?;
        let key = Zeroizing::new(key);
        let der = key.secret_der();
        let kind = match &*key {
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(der).ok().map(Kind::Rsa),
            _ => ecdsa(der).or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Kind::Rsa)),
        };
        let kind = kind.ok_or(KeyError::Unsupported)?;
        if let Kind::Rsa(rsa) = &kind
            && rsa.public_modulus_len() < 256
        {
            return Err(KeyError::Unsupported);
        }
        Ok(Self(kind))
    }

    /// The key as PKCS#8 PEM, for a file that only its owner reads.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let der = self.to_der()?;
        Ok(Zeroizing::new(pem::encode("PRIVATE KEY", &der)))
    }

    /// What it is.
    pub fn key_algorithm(&self) -> KeyAlgorithm {
        match &self.0 {
            Kind::P256(_) => KeyAlgorithm::P256,
            Kind::P384(_) => KeyAlgorithm::P384,
            Kind::Rsa(rsa) => KeyAlgorithm::Rsa(rsa.public_modulus_len() * 8),
        }
    }

    /// PKCS#8.
    pub(crate) fn to_der(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let der = match &self.0 {
            // The library wipes its own copies.
            Kind::P256(key) | Kind::P384(key) => key.to_pkcs8v1().map(|d| d.as_ref().to_vec()),
            Kind::Rsa(key) => key.as_der().map(|d: Pkcs8V1Der<'_>| d.as_ref().to_vec()),
        };
        Ok(Zeroizing::new(der.map_err(|_| KeyError::Library)?))
    }
}

fn ecdsa(der: &[u8]) -> Option<Kind> {
    let p256 = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der);
    let p384 = || EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, der);
    p256.ok().map(Kind::P256).or_else(|| p384().ok().map(Kind::P384))
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::P256(key) | Kind::P384(key) => key.public_key().as_ref(),
            Kind::Rsa(key) => key.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match &self.0 {
            Kind::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::P384(_) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Kind::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let failed = |_| rcgen::Error::RingUnspecified;
        let random = SystemRandom::new();
        match &self.0 {
            Kind::P256(key) | Kind::P384(key) => {
                Ok(key.sign(&random, message).map_err(failed)?.as_ref().to_vec())
            }
            Kind::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.key_algorithm())
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_and_read_and_never_shown() {
        let key = PrivateKey::generate().expect("a key");
        let text = key.to_pem().expect("PEM");
        let again = PrivateKey::from_pem(text.as_bytes()).expect("the same key");
        assert_eq!(key.der_bytes(), again.der_bytes());
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let damaged = pem::encode("PRIVATE KEY", b"damaged");
        for (text, error) in [
            ("", KeyError::NoKey),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", KeyError::NoKey),
            (&damaged, KeyError::Unsupported),
        ] {
            assert_eq!(PrivateKey::from_pem(text.as_bytes()).expect_err(text), error);
        }
    }
}
