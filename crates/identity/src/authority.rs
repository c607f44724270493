//! The certificate authority: one signing key, its chain, the roots that clients trust.
//!
//! In: files in PEM, or nothing; checked requests. Out: certificates, each built fresh.
//!
//! **Invariant:** an authority that exists can sign: key and certificate are a pair, the chain
//! leads to a root, and a certificate that it issued was verified as clients will.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::bundle::{TrustBundle, fingerprint, time_of};
use crate::csr::CertifiedRequest;
use crate::key::{KeyError, PrivateKey};
use crate::pem;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Clocks of clients may be behind by this much: certificates are valid from so long ago.
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// Lifetime of a root that is made here.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Lifetime of an intermediate that is made here.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// What is left of the authority's own life must be at least this, or nothing is issued.
const LEAST_LIFETIME: Duration = Duration::from_secs(60);
/// Certificates between the authority and its root, at most.
const LONGEST_CHAIN: usize = 8;

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    /// From the authority's own certificate up to the last below the root; empty when the
    /// authority is a root itself.
    chain: Vec<CertificateDer<'static>>,
    chain_pem: Vec<String>,
    roots: TrustBundle,
    roots_pem: String,
    about: About,
}

/// What people may know about an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Subject of its certificate.
    pub subject: String,
    /// Serial number of its certificate, in hex.
    pub serial: String,
    /// Sort of its key.
    pub key: String,
    /// From when on its whole chain is valid.
    pub not_before: SystemTime,
    /// When the first certificate of its chain, its root included, ends.
    pub not_after: SystemTime,
    /// Whether it is a root itself.
    pub self_signed: bool,
}

/// The files of an authority, as `cacerts` has them.
pub struct CaFiles {
    /// `ca-cert.pem`.
    pub certificate: Vec<u8>,
    /// `ca-key.pem`.
    pub key: Zeroizing<Vec<u8>>,
    /// `root-cert.pem`.
    pub roots: Vec<u8>,
    /// `cert-chain.pem`.
    pub chain: Vec<u8>,
}

/// Why files are no authority. Messages name the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The key.
    #[error("ca-key.pem: {0}")]
    Key(#[from] KeyError),
    /// A file that cannot be used as it is.
    #[error("{file}: {why}")]
    File {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Key and certificate do not belong together.
    #[error("ca-key.pem is not the key of ca-cert.pem")]
    Pair,
    /// The certificate may not sign others.
    #[error("ca-cert.pem is not a CA certificate: {0}")]
    NoAuthority(&'static str),
    /// No way from the certificate to a root.
    #[error("cert-chain.pem and root-cert.pem hold no valid chain from {0:?} to a root")]
    Chain(String),
    /// Out of its time.
    #[error("the certificate {subject:?} {when}")]
    Time {
        /// Whose.
        subject: String,
        /// `has expired`, or `is not valid yet`.
        when: &'static str,
    },
    /// What it signs is refused by clients.
    #[error("clients would refuse what this CA signs: {0}")]
    Unusable(String),
}

/// Why nothing is issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The authority ends too soon.
    #[error("the CA certificate has expired or is about to")]
    Expired,
    /// The library could not sign.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Serial number in hex.
    pub serial: String,
    /// Its end.
    pub not_after: SystemTime,
}

// === impl Authority ===

impl Authority {
    /// Make the files of a new self-signed root.
    pub fn self_signed(trust_domain: &TrustDomain, now: SystemTime) -> Result<CaFiles, CaError> {
        let key = PrivateKey::generate()?;
        let params =
            ca_params(trust_domain, "Root CA", &key, IsCa::Ca(BasicConstraints::Unconstrained))
                .lasting(now, ROOT_LIFETIME);
        let root = params.0.self_signed(&key).map_err(unusable)?;
        let text = pem::certificate(root.der()).into_bytes();
        Ok(CaFiles {
            certificate: text.clone(),
            key: Zeroizing::new(key.to_pem()?.as_bytes().to_vec()),
            roots: text.clone(),
            chain: text,
        })
    }

    /// Make the files of an intermediate below this authority.
    pub fn intermediate(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CaFiles, CaError> {
        let key = PrivateKey::generate()?;
        let left = self.about.not_after.duration_since(now).unwrap_or_default();
        let is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let params = ca_params(trust_domain, "Intermediate CA", &key, is_ca)
            .lasting(now, INTERMEDIATE_LIFETIME.min(left));
        let certificate = params.0.signed_by(&key, &self.issuer).map_err(unusable)?;
        let own = pem::certificate(certificate.der());
        let above: String = self.chain_pem.concat();
        Ok(CaFiles {
            chain: format!("{own}{above}{}", self.roots_pem).into_bytes(),
            certificate: own.into_bytes(),
            key: Zeroizing::new(key.to_pem()?.as_bytes().to_vec()),
            roots: self.roots_pem.clone().into_bytes(),
        })
    }

    /// Read and check the files of an authority.
    pub fn from_files(files: &CaFiles, now: SystemTime) -> Result<Self, CaError> {
        let key = PrivateKey::from_pem(&files.key)?;
        let own = only_certificate(&files.certificate)?;
        let roots = TrustBundle::from_pem(&files.roots)
            .map_err(|why| CaError::File { file: "root-cert.pem", why })?;
        let others = pem::certificates(&files.chain).ok_or_else(|| CaError::File {
            file: "cert-chain.pem",
            why: "it holds something else than certificates in PEM, or is damaged".to_owned(),
        })?;
        let parsed = parse(&own, "ca-cert.pem")?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Pair);
        }
        may_sign(&parsed)?;
        let chain = chain(&own, &others, &roots)?;
        let (not_before, not_after) = validity(&chain, now)?;
        let self_signed = roots.contains(&own);
        let below: Vec<_> = chain.into_iter().filter(|link| !roots.contains(link)).collect();
        let about = About {
            subject: parsed.subject().to_string(),
            serial: hex(parsed.raw_serial()),
            key: key.key_algorithm().to_string(),
            not_before,
            not_after,
            self_signed,
        };
        let issuer = Issuer::from_ca_cert_der(&own, key).map_err(unusable)?;
        let authority = Self {
            issuer,
            chain_pem: below.iter().map(|link| pem::certificate(link)).collect(),
            chain: below,
            roots_pem: roots.to_pem(),
            roots,
            about,
        };
        authority.prove(now)?;
        Ok(authority)
    }

    /// The files that it would be read from again: for whoever keeps them, when they were lost.
    pub fn to_files(&self) -> Result<CaFiles, CaError> {
        let own = match self.chain_pem.first() {
            Some(own) => own.clone(),
            // A root: of the roots the one with its key.
            None => self.own_root()?,
        };
        Ok(CaFiles {
            certificate: own.into_bytes(),
            key: Zeroizing::new(self.issuer.key().to_pem()?.as_bytes().to_vec()),
            roots: self.roots_pem.clone().into_bytes(),
            chain: self.chain_pem.concat().into_bytes(),
        })
    }

    fn own_root(&self) -> Result<String, CaError> {
        for root in self.roots.roots() {
            let parsed = parse(&root.der, "root-cert.pem")?;
            if parsed.public_key().raw == self.issuer.key().subject_public_key_info() {
                return Ok(pem::certificate(&root.der));
            }
        }
        Err(CaError::Pair)
    }

    /// Whether this is the same authority, with the same chain and roots.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.about == other.about && self.chain_pem == other.chain_pem && self.roots == other.roots
    }

    /// What people may know about it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The roots that its clients trust.
    pub fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// Its chain, own certificate first, without roots.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The answer to a client: the certificate, the chain, and all roots as one last text.
    pub fn answer(&self, issued: &Issued) -> Vec<String> {
        let mut out = Vec::with_capacity(self.chain_pem.len() + 2);
        out.push(pem::certificate(&issued.der));
        out.extend(self.chain_pem.iter().cloned());
        out.push(self.roots_pem.clone());
        out
    }

    /// Issue to a workload that proved to be `id`.
    pub fn issue(
        &self,
        id: &SpiffeId,
        request: &CertifiedRequest,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        self.sign(id, &[], &request.key, request.rsa, lifetime, now)
    }

    /// Issue a server's certificate: `id`, and the names and addresses that clients dial.
    pub fn issue_server(
        &self,
        id: &SpiffeId,
        names: &[String],
        key: &PrivateKey,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        self.sign(id, names, key, false, lifetime, now)
    }

    fn sign(
        &self,
        id: &SpiffeId,
        names: &[String],
        key: &impl PublicKeyData,
        rsa: bool,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let failed = |error: rcgen::Error| IssueError::Signing(error.to_string());
        if self.about.not_after < now + LEAST_LIFETIME {
            return Err(IssueError::Expired);
        }
        let not_after = self.about.not_after.min(now + lifetime);
        let not_before = self.about.not_before.max(now - CLOCK_SKEW);
        let mut serial = [0; 16];
        rand::fill(&mut serial).map_err(|_| IssueError::Signing("no random bytes".to_owned()))?;
        let mut params = CertificateParams::default();
        // Without a subject the names are critical, as SPIFFE wants.
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = date(not_before);
        params.not_after = date(not_after);
        let uri = id.to_string().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if rsa {
            // What TLS 1.2 with RSA key exchange asks for.
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        let der = certificate.der().clone();
        Ok(Issued { der, serial: hex(&serial), not_after })
    }

    /// Issue a certificate and verify it as a peer would.
    fn prove(&self, now: SystemTime) -> Result<(), CaError> {
        let unusable = |why: String| CaError::Unusable(why);
        let key = PrivateKey::generate()?;
        let domain: TrustDomain = "heddle.invalid".parse().map_err(|_| KeyError::Library)?;
        let id = SpiffeId::new(&domain, "check", "check").map_err(|_| KeyError::Library)?;
        let issued = self
            .issue_server(&id, &[], &key, Duration::from_secs(300), now)
            .map_err(|error| unusable(error.to_string()))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(
            self.roots.anchors(),
            crate::tls::provider(),
        );
        let verifier = verifier.build().map_err(|error| unusable(error.to_string()))?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let verified = verifier.verify_client_cert(
            &issued.der,
            &self.chain,
            UnixTime::since_unix_epoch(since),
        );
        verified.map(|_| ()).map_err(|error| unusable(error.to_string()))
    }
}

/// Parameters of an authority's certificate.
struct CaParams(CertificateParams);

fn ca_params(trust_domain: &TrustDomain, name: &str, key: &PrivateKey, is_ca: IsCa) -> CaParams {
    // Authorities of one name and different keys are hard to tell apart, for people and for
    // libraries that look for an issuer by its name.
    let name = format!("{name} {}", hex(&fingerprint(key.der_bytes())[..4]));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    CaParams(params)
}

impl CaParams {
    fn lasting(mut self, now: SystemTime, lifetime: Duration) -> Self {
        self.0.not_before = date(now - CLOCK_SKEW);
        self.0.not_after = date(now + lifetime);
        self
    }
}

fn unusable(error: rcgen::Error) -> CaError {
    CaError::Unusable(error.to_string())
}

fn only_certificate(text: &[u8]) -> Result<CertificateDer<'static>, CaError> {
    let wrong = |why: &str| CaError::File { file: "ca-cert.pem", why: why.to_owned() };
    let certificates = pem::certificates(text)
        .ok_or_else(|| wrong("it holds something else than a certificate, or is damaged"))?;
    // Some tools append the chain; the first is the authority's own.
    certificates.into_iter().next().ok_or_else(|| wrong("it holds no certificate in PEM"))
}

fn parse<'a>(der: &'a [u8], file: &'static str) -> Result<X509Certificate<'a>, CaError> {
    let damaged = || CaError::File { file, why: "a certificate in it is damaged".to_owned() };
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| damaged())?;
    if rest.is_empty() { Ok(parsed) } else { Err(damaged()) }
}

/// Whether a certificate may sign others.
fn may_sign(certificate: &X509Certificate<'_>) -> Result<(), CaError> {
    if !certificate.is_ca() {
        return Err(CaError::NoAuthority("its basic constraints do not say CA:TRUE"));
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => {
            Err(CaError::NoAuthority("its key usage does not allow signing certificates"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(CaError::NoAuthority("its key usage cannot be read")),
    }
}

/// The way from a certificate to a root, both included.
fn chain(
    own: &CertificateDer<'static>,
    others: &[CertificateDer<'static>],
    roots: &TrustBundle,
) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let mut out = vec![own.clone()];
    while out.len() <= LONGEST_CHAIN {
        let last = &out[out.len() - 1];
        if roots.contains(last) {
            return Ok(out);
        }
        let link = parse(last, "cert-chain.pem")?;
        let above = roots.roots().map(|root| &root.der).chain(others).find(|candidate| {
            let Ok(candidate) = parse(candidate, "cert-chain.pem") else { return false };
            candidate.subject() == link.issuer()
                && may_sign(&candidate).is_ok()
                && link.verify_signature(Some(candidate.public_key())).is_ok()
        });
        match above {
            Some(above) if !out.contains(above) => out.push(above.clone()),
            _ => break,
        }
    }
    Err(CaError::Chain(parse(own, "ca-cert.pem")?.subject().to_string()))
}

/// When every certificate of a chain is valid; an error if now is not such a time.
fn validity(
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(SystemTime, SystemTime), CaError> {
    let mut common = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + ROOT_LIFETIME * 100);
    for link in chain {
        let link = parse(link, "cert-chain.pem")?;
        let validity = link.validity();
        let (from, to) = (time_of(&validity.not_before), time_of(&validity.not_after));
        let wrong = |when| Err(CaError::Time { subject: link.subject().to_string(), when });
        if to <= now {
            return wrong("has expired");
        }
        if from > now {
            return wrong("is not valid yet");
        }
        common = (common.0.max(from), common.1.min(to));
    }
    Ok(common)
}

fn date(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(time)
}

/// Bytes in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
