//! JWTs of a configured issuer.
//!
//! In: the issuer's public keys, a token. Out: the workload that the token names.
//!
//! The subject is `system:serviceaccount:<namespace>:<name>`, as Kubernetes writes it, or a SPIFFE
//! id of this mesh.
//!
//! **Invariant:** the algorithm is that of the configured key; what the token says about it can
//! only make it fail.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use serde::de::IgnoredAny;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::authenticate::{Method, Refusal, TokenSource, Verdict, Verified};
use crate::bundle::fingerprint;
use crate::spiffe::{BadId, SpiffeId, TrustDomain};

/// Whom tokens must be for.
pub const AUDIENCE: &str = "istio-ca";

/// What the user names of service accounts begin with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Clocks of the issuer and ours may differ by so much.
const LEEWAY: Duration = Duration::from_secs(10);
/// Longest token that is looked at.
const LONGEST: usize = 16 << 10;

/// Checks JWTs of one issuer.
pub struct JwtIssuer {
    keys: Vec<Key>,
    issuer: String,
    trust_domain: TrustDomain,
}

struct Key {
    id: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// Why keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the keys of JWTs cannot be used: {0}; give public keys in PEM (P-256, P-384 or RSA), or a JWKS"
)]
pub struct BadKeys(String);

/// Public keys, for a look at signatures only: who may be what, others decide.
pub struct Signatures(Vec<Key>);

/// What a signature shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// It is of one of the keys.
    Good,
    /// It claims a key that is there, and is not of it; or it can be of none.
    Bad,
    /// It claims a key that is not there.
    UnknownKey,
}

/// What a token says about itself, before anybody checked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unchecked {
    /// Its end.
    pub expires: SystemTime,
}

#[derive(Deserialize)]
struct Claims {
    // That they are there is checked by the library, which says which is missing.
    sub: Option<String>,
    exp: Option<u64>,
}

/// Whether a text could be a JWT.
pub fn is_shaped(token: &str) -> bool {
    token.split('.').count() == 3
}

/// SHA-256 of a token: what may be kept of it.
pub fn hash(token: &str) -> [u8; 32] {
    fingerprint(token.as_bytes())
}

/// Read what a token says about itself. It proves nothing: only whoever checks the token as a
/// whole makes it true. A token that is not for us, or whose time is over, by its own words is
/// refused here already.
pub fn unchecked(token: &str) -> Result<Unchecked, Refusal> {
    #[derive(Deserialize)]
    struct Said {
        exp: Option<u64>,
        #[serde(default)]
        aud: Audience,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    impl Default for Audience {
        fn default() -> Self {
            Self::Many(Vec::new())
        }
    }
    if token.len() > LONGEST {
        return Err(Refusal::TokenSignature);
    }
    let said = jsonwebtoken::dangerous::insecure_decode_claims::<Said>(token);
    let said = said.map_err(|_| Refusal::TokenSignature)?;
    let ours = match &said.aud {
        Audience::One(audience) => audience == AUDIENCE,
        Audience::Many(all) => all.iter().any(|audience| audience == AUDIENCE),
    };
    if !ours {
        return Err(Refusal::TokenAudience(AUDIENCE));
    }
    let no_end = || Refusal::TokenSubject("it has no claim exp".to_owned());
    let expires = end(said.exp.ok_or_else(no_end)?)?;
    match expires > SystemTime::now() {
        true => Ok(Unchecked { expires }),
        false => Err(Refusal::Expired("token")),
    }
}

/// The workload of a user name such as `system:serviceaccount:shop:web`.
pub fn service_account(user: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let account = user.strip_prefix(SERVICE_ACCOUNT).and_then(|account| account.split_once(':'));
    let subject = |why: String| Refusal::TokenSubject(why);
    let (namespace, name) =
        account.ok_or_else(|| subject("its subject is no service account".to_owned()))?;
    SpiffeId::new(trust_domain, namespace, name).map_err(|error| subject(error.to_string()))
}

/// A time of a token, in seconds since 1970.
fn end(seconds: u64) -> Result<SystemTime, Refusal> {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .ok_or_else(|| Refusal::TokenSubject("its end is beyond all time".to_owned()))
}

// === impl Signatures ===

impl Signatures {
    /// The keys of a JWKS; an error if one of them cannot be used.
    pub fn new(jwks: &[u8]) -> Result<Self, BadKeys> {
        let set: JwkSet =
            serde_json::from_slice(jwks).map_err(|error| BadKeys(error.to_string()))?;
        let keys: Vec<Key> = set.keys.iter().map(of_jwk).collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Err(BadKeys("there is none".to_owned())),
            false => Ok(Self(keys)),
        }
    }

    /// Look at the signature of a token, and at nothing else in it.
    pub fn check(&self, token: &str) -> Signature {
        let Ok(header) = jsonwebtoken::decode_header(token) else { return Signature::Bad };
        let mut own = self.0.iter().filter(|key| match (&key.id, &header.kid) {
            (Some(own), Some(asked)) => own == asked,
            _ => true,
        });
        let mut validation = Validation::new(header.alg);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let mut found = Signature::UnknownKey;
        let good = own.any(|key| {
            found = Signature::Bad;
            key.algorithms.contains(&header.alg)
                && jsonwebtoken::decode::<IgnoredAny>(token, &key.key, &validation).is_ok()
        });
        if good { Signature::Good } else { found }
    }
}

// === impl JwtIssuer ===

impl JwtIssuer {
    /// Believe tokens that `issuer` signed with one of these keys: PEM, or a JWKS.
    pub fn new(issuer: &str, keys: &[u8], trust_domain: TrustDomain) -> Result<Self, BadKeys> {
        if issuer.is_empty() {
            return Err(BadKeys("the issuer has no name".to_owned()));
        }
        let keys = match serde_json::from_slice::<JwkSet>(keys) {
            Ok(set) => set.keys.iter().map(of_jwk).collect::<Result<_, _>>()?,
            Err(_) => of_pem(keys)?,
        };
        if keys.is_empty() {
            return Err(BadKeys("there is none".to_owned()));
        }
        Ok(Self { keys, issuer: issuer.to_owned(), trust_domain })
    }

    fn check(&self, token: &str) -> Result<Verified, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::TokenSignature);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::TokenSignature)?;
        let named = |key: &&Key| match (&key.id, &header.kid) {
            (Some(own), Some(asked)) => own == asked,
            _ => true,
        };
        let mut last = Refusal::TokenSignature;
        for key in self.keys.iter().filter(named) {
            if !key.algorithms.contains(&header.alg) {
                continue;
            }
            match jsonwebtoken::decode::<Claims>(token, &key.key, &self.validation(header.alg)) {
                Ok(token) => return self.workload(&token.claims),
                Err(error) => match refusal(error.kind()) {
                    Refusal::TokenSignature => {}
                    refusal => last = refusal,
                },
            }
        }
        Err(last)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation
    }

    fn workload(&self, claims: &Claims) -> Result<Verified, Refusal> {
        let subject = |why: String| Refusal::TokenSubject(why);
        let sub = claims.sub.as_deref().unwrap_or_default();
        let id = match sub.starts_with(SERVICE_ACCOUNT) {
            true => service_account(sub, &self.trust_domain)?,
            false => sub.parse().map_err(|error: BadId| subject(error.to_string()))?,
        };
        if *id.trust_domain() != self.trust_domain {
            return Err(subject(format!("it is of the trust domain {}", id.trust_domain())));
        }
        let expires = end(claims.exp.unwrap_or_default())?;
        Verified::new(id, Method::Jwt, expires, SystemTime::now())
    }
}

impl TokenSource for JwtIssuer {
    fn verify<'a>(&'a self, token: &'a str) -> Option<Verdict<'a>> {
        is_shaped(token).then(|| -> Verdict<'a> { Box::pin(std::future::ready(self.check(token))) })
    }
}

fn refusal(error: &ErrorKind) -> Refusal {
    match error {
        ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => Refusal::Expired("token"),
        ErrorKind::InvalidAudience => Refusal::TokenAudience(AUDIENCE),
        ErrorKind::InvalidIssuer => Refusal::TokenIssuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => {
            Refusal::TokenAudience(AUDIENCE)
        }
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Refusal::TokenIssuer,
        ErrorKind::MissingRequiredClaim(claim) => {
            Refusal::TokenSubject(format!("it has no claim {claim}"))
        }
        _ => Refusal::TokenSignature,
    }
}

const RSA: [Algorithm; 3] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];

fn of_jwk(jwk: &Jwk) -> Result<Key, BadKeys> {
    use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve};
    let bad = |why: &str| BadKeys(why.to_owned());
    let algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return Err(bad("a key of the JWKS is on a curve that is not supported")),
        },
        // A shared secret would let whoever checks tokens also make them.
        _ => return Err(bad("a key of the JWKS is no public key of a supported sort")),
    };
    let key = DecodingKey::from_jwk(jwk).map_err(|error| BadKeys(error.to_string()))?;
    Ok(Key { id: jwk.common.key_id.clone(), key, algorithms })
}

fn of_pem(text: &[u8]) -> Result<Vec<Key>, BadKeys> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    let mut out = Vec::new();
    for section in sections {
        let (kind, der) = section.map_err(|error| BadKeys(error.to_string()))?;
        if kind != SectionKind::PublicKey {
            return Err(BadKeys(format!("the file holds a block {kind:?}")));
        }
        let damaged = |_| BadKeys("a public key is damaged".to_owned());
        let (_, key) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| damaged(()))?;
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let bytes = &key.subject_public_key.data;
        let (key, algorithms) = match curve {
            _ if key.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION => {
                (DecodingKey::from_rsa_der(bytes), RSA.to_vec())
            }
            Some(curve) if curve == OID_EC_P256 => {
                (DecodingKey::from_ec_der(bytes), vec![Algorithm::ES256])
            }
            Some(curve) if curve == OID_NIST_EC_P384 => {
                (DecodingKey::from_ec_der(bytes), vec![Algorithm::ES384])
            }
            _ => return Err(BadKeys("a public key is of a sort that is not supported".to_owned())),
        };
        out.push(Key { id: None, key, algorithms });
    }
    Ok(out)
}
