//! Requests that must be refused.

use identity::{CertifiedRequest, CsrError};
use proptest::prelude::*;

use super::id;
use super::openssl::{self, P224, P256, P384, P521, RSA_1024, RSA_2048};

/// What checking a request comes to, made by openssl with this key and these arguments.
fn check(key: &str, more: &str) -> Result<(), CsrError> {
    let folder = tempfile::tempdir().expect("a folder");
    let request = openssl::request(folder.path(), key, more);
    CertifiedRequest::check(&request, &id("shop", "web")).map(|_| ())
}

#[test]
fn given_a_csr_with_a_foreign_san_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    for san in [
        "URI:spiffe://cluster.local/ns/shop/sa/admin",
        "URI:spiffe://cluster.local/ns/kube-system/sa/web",
        "URI:spiffe://other.domain/ns/shop/sa/web",
        "URI:spiffe://cluster.local/ns/shop/sa/web,URI:spiffe://cluster.local/ns/a/sa/b",
        "DNS:kubernetes.default.svc",
        "IP:10.0.0.1",
        "email:a@example.com",
    ] {
        let refused = check(P256, &format!("-addext subjectAltName={san}"));
        assert!(matches!(refused, Err(CsrError::ForeignName(_))), "{san}: {refused:?}");
    }
    let own = "-addext subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(check(P256, own), Ok(()));
}

#[test]
fn given_a_csr_that_asks_to_be_a_ca_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    let ca = check(P256, "-addext basicConstraints=critical,CA:TRUE");
    assert_eq!(ca, Err(CsrError::Authority));
    assert_eq!(check(P256, "-addext keyUsage=keyCertSign"), Err(CsrError::Authority));
    assert_eq!(check(P256, "-addext basicConstraints=critical,CA:FALSE"), Ok(()));
}

#[test]
fn given_a_weak_or_foreign_key_then_the_csr_is_refused() {
    if !openssl::is_here() {
        return;
    }
    for (key, says) in [
        (RSA_1024, "RSA of 1024 bits"),
        (P224, "curve 1.3.132.0.33"),
        (P521, "curve 1.3.132.0.35"),
        ("-algorithm ED25519", "algorithm is 1.3.101.112"),
    ] {
        let refused = check(key, "").expect_err(key).to_string();
        assert!(refused.contains(says) && refused.contains("use P-256"), "{refused}");
    }
    // A P-384 key with a SHA-256 signature is fine.
    for (key, more) in [(P384, "-sha256"), (P384, ""), (RSA_2048, ""), (P256, "")] {
        assert_eq!(check(key, more), Ok(()), "{key}");
    }
}

#[test]
fn given_a_csr_with_a_bad_signature_then_it_is_refused() {
    if !openssl::is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    openssl::request(folder.path(), P256, "");
    openssl::good(folder.path(), "req -in csr.pem -outform DER -out csr.der");
    let der = std::fs::read(folder.path().join("csr.der")).expect("there");
    for at in signed(&der).chain(signature(&der)) {
        let mut bad = der.clone();
        bad[at] ^= 1;
        let text = pem_of(&bad);
        assert!(CertifiedRequest::check(text.as_bytes(), &id("a", "b")).is_err(), "byte {at}");
    }
    let text = pem_of(&der);
    assert!(CertifiedRequest::check(text.as_bytes(), &id("a", "b")).is_ok());
    // Trailing bytes, two requests, another block.
    let mut longer = der.clone();
    longer.push(0);
    for text in [pem_of(&longer), format!("{text}{text}"), text.replace("REQUEST", "REQUESTS")] {
        let refused = CertifiedRequest::check(text.as_bytes(), &id("a", "b")).err();
        assert_eq!(refused, Some(CsrError::Malformed));
    }
}

#[test]
fn given_a_csr_of_1_mb_then_it_is_refused_unread() {
    let text = pem_of(&vec![0x30; 1 << 20]);
    let refused = CertifiedRequest::check(text.as_bytes(), &id("a", "b")).err();
    assert_eq!(refused, Some(CsrError::TooLong(text.len())));
}

fn pem_of(der: &[u8]) -> String {
    identity::pem::certificate(der).replace("CERTIFICATE", "CERTIFICATE REQUEST")
}

/// The part of a short request that its signature covers: the first sequence in the outer one.
fn signed(der: &[u8]) -> std::ops::Range<usize> {
    assert_eq!((der[..2].to_vec(), der[3]), (vec![0x30, 0x81], 0x30), "lengths of one byte");
    3..5 + usize::from(der[4])
}

/// Its signature: what follows the name of its algorithm, which nothing covers, and the head of
/// the bit string.
fn signature(der: &[u8]) -> std::ops::Range<usize> {
    signed(der).end + 15..der.len()
}

/// A good request, whose bytes are then changed at random.
const GOOD: &[u8] = include_bytes!("good.der");

proptest! {
    #[test]
    fn given_random_bytes_then_they_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(CertifiedRequest::check(&bytes, &id("a", "b")).is_err());
        prop_assert!(CertifiedRequest::check(pem_of(&bytes).as_bytes(), &id("a", "b")).is_err());
    }

    #[test]
    fn given_a_request_with_random_changes_then_it_is_refused(
        changes in prop::collection::vec((signed(GOOD), 1u8..), 1..8),
        cut in 0..GOOD.len(),
    ) {
        let mut bytes = GOOD.to_vec();
        for (at, bits) in changes {
            bytes[at] ^= bits;
        }
        prop_assume!(bytes != GOOD);
        prop_assert!(CertifiedRequest::check(pem_of(&bytes).as_bytes(), &id("a", "b")).is_err());
        bytes.truncate(cut);
        prop_assert!(CertifiedRequest::check(pem_of(&bytes).as_bytes(), &id("a", "b")).is_err());
    }
}
