//! PEM: what certificates and keys are written in.
//!
//! In: text, DER. Out: DER, text.
//!
//! **Invariant:** text that may hold a key is wiped when it is dropped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use zeroize::Zeroizing;

/// Write DER under a label, 64 characters a line.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    let lines = body.len().div_ceil(64);
    // Never grows, so that no copy of a key is left behind.
    let mut out = String::with_capacity(body.len() + lines + 2 * (label.len() + 20));
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    for (i, character) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            out.push('\n');
        }
        out.push(character);
    }
    out.push_str("\n-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// A certificate as PEM.
pub fn certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// Every certificate of a text. None: the text has a block that is none, or is damaged.
pub fn certificates(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    let mut out = Vec::new();
    for section in sections {
        match section.ok()? {
            (SectionKind::Certificate, der) => out.push(der.into()),
            _ => return None,
        }
    }
    Some(out)
}

/// The DER of the only block of a text, which must be a certificate signing request.
pub(crate) fn request(text: &[u8]) -> Option<Vec<u8>> {
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    let der = match sections.next()?.ok()? {
        (SectionKind::Csr, der) => der,
        _ => return None,
    };
    sections.next().is_none().then_some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for length in [0, 1, 47, 48, 49, 96, 500] {
            let der: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let text = certificate(&der);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            let read = certificates(text.as_bytes()).expect("it is PEM");
            assert_eq!(read.iter().map(|c| c.as_ref()).collect::<Vec<_>>(), [&der[..]]);
        }
    }

    #[test]
    fn other_blocks_are_refused() {
        let csr = encode("CERTIFICATE REQUEST", b"abc");
        assert_eq!(request(csr.as_bytes()), Some(b"abc".to_vec()));
        assert_eq!(request(format!("{csr}{csr}").as_bytes()), None);
        assert_eq!(request(certificate(b"abc").as_bytes()), None);
        assert_eq!(request(b""), None);
        assert_eq!(certificates(csr.as_bytes()), None);
        assert_eq!(certificates(b"no PEM at all"), Some(vec![]));
    }
}
