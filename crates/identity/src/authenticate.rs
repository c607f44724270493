//! Who is asking.
//!
//! In: the certificate that a connection presented, the token that a call carries. Out: a verified
//! identity and the time until which it holds, or why not.
//!
//! A token that is sent decides alone: a call with a bad token and a good certificate is refused.
//!
//! **Invariant:** an identity comes from a credential that was checked here, never from a request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::join::Redeem;
use crate::renewal;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::stats::Stats;
use crate::tls;

/// Streams end before their credential does, spread over at most this time, so that not all
/// clients that came together return together.
const LONGEST_SPREAD: Duration = Duration::from_secs(300);

/// A caller who proved who it is.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Who.
    pub id: SpiffeId,
    /// By what.
    pub method: Method,
    /// End of the credential.
    pub expires: SystemTime,
    /// When streams that were opened with it end: at `expires` or a little earlier.
    pub ends: Instant,
    /// The node of a cluster that the caller's pod runs on, where the credential proves it.
    pub node: Option<Arc<str>>,
    /// Uses the credential up. Who grants something lasting must call it, and grant nothing when
    /// it fails.
    pub(crate) redeem: Option<Redeem>,
}

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// A certificate of this mesh, by TLS.
    Certificate,
    /// A JWT.
    Jwt,
    /// A service account's token, which the API server of the cluster has reviewed.
    ServiceAccount,
    /// A join token.
    JoinToken,
}

/// Why a caller is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither certificate nor token.
    #[error(
        "no credential: present a certificate of this mesh, or send a token as `authorization: Bearer …`"
    )]
    NoCredential,
    /// The certificate names no workload of this mesh.
    #[error("the certificate names no workload of this mesh: {0}")]
    Certificate(String),
    /// The credential's time is over.
    #[error("the {0} has expired")]
    Expired(&'static str),
    /// Nobody here can check such a token.
    #[error("this sort of token is not accepted here")]
    TokenSort,
    /// Not well-formed, not signed by a configured key, or by an algorithm that is not allowed.
    #[error("the token is not signed by a configured key")]
    TokenSignature,
    /// For somebody else.
    #[error("the token is not for the audience {0:?}")]
    TokenAudience(&'static str),
    /// From somebody else.
    #[error("the token is from an issuer that is not configured")]
    TokenIssuer,
    /// Names no workload.
    #[error("the token names no workload of this mesh: {0}")]
    TokenSubject(String),
    /// The API server does not accept it, or no longer does.
    #[error("the API server does not accept the token: {0}")]
    TokenReview(String),
    /// Not there, used up, or its time is over.
    #[error("the join token is unknown, was used, or has expired")]
    JoinToken,
    /// Whoever checks tokens cannot do so now.
    #[error("tokens cannot be checked now: {0}")]
    Unavailable(String),
}

/// The verdict of a source of identities.
pub type Verdict<'a> = Pin<Box<dyn Future<Output = Result<Verified, Refusal>> + Send + 'a>>;

/// Checks tokens of one sort: JWTs by a configured key, join tokens; on Kubernetes those that the
/// API server reviews.
pub trait TokenSource: Send + Sync {
    /// The verdict about a token; none = the token is of another sort.
    fn verify<'a>(&'a self, token: &'a str) -> Option<Verdict<'a>>;
}

/// What a connection proved by TLS; added to each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The identity in its certificate, if it presented one.
    pub certificate: Option<Result<Verified, Refusal>>,
}

/// Checks callers.
pub struct Authenticator {
    sources: Vec<Arc<dyn TokenSource>>,
    stats: Arc<Stats>,
}

// === impl Verified ===

impl Verified {
    /// A caller whose credential ends at `expires`; refused if that is past.
    pub fn new(
        id: SpiffeId,
        method: Method,
        expires: SystemTime,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        let what = match method {
            Method::Certificate => "certificate",
            Method::Jwt | Method::ServiceAccount | Method::JoinToken => "token",
        };
        let left = expires.duration_since(now).map_err(|_| Refusal::Expired(what))?;
        if left.is_zero() {
            return Err(Refusal::Expired(what));
        }
        // A year is for ever, and no overflow.
        let left = left.min(Duration::from_secs(365 * 24 * 3600));
        let ends = Instant::now() + left - renewal::share((left / 10).min(LONGEST_SPREAD));
        Ok(Self { id, method, expires, ends, node: None, redeem: None })
    }

    /// The same, of a pod on this node.
    pub fn on_node(self, node: Option<Arc<str>>) -> Self {
        Self { node, ..self }
    }

    /// The same, of a credential that can be used once.
    pub(crate) fn once(self, redeem: Redeem) -> Self {
        Self { redeem: Some(redeem), ..self }
    }

    /// Whether its credential still holds.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match SystemTime::now() < self.expires {
            true => Ok(()),
            false => Err(Refusal::Expired("certificate")),
        }
    }
}

// === impl Peer ===

impl Peer {
    /// From the certificates of a handshake, which TLS has verified.
    pub(crate) fn of(certificate: Option<&[u8]>, trust_domain: &TrustDomain) -> Self {
        let verified = certificate.map(|der| {
            let (id, expires) = tls::identity_of(der).map_err(Refusal::Certificate)?;
            if id.trust_domain() != trust_domain {
                let foreign = format!("it is of the trust domain {}", id.trust_domain());
                return Err(Refusal::Certificate(foreign));
            }
            Verified::new(id, Method::Certificate, expires, SystemTime::now())
        });
        Self { certificate: verified }
    }
}

// === impl Authenticator ===

impl Authenticator {
    /// Believes certificates, and tokens of these sources.
    pub fn new(sources: Vec<Arc<dyn TokenSource>>, stats: Arc<Stats>) -> Self {
        Self { sources, stats }
    }

    /// Who sends a request, by its connection and its headers.
    pub async fn authenticate(
        &self,
        peer: Option<&Peer>,
        headers: &http::HeaderMap,
    ) -> Result<Verified, Refusal> {
        let verdict = self.verdict(peer, headers).await;
        if let Err(refusal) = &verdict {
            self.stats.authentication_failures.add(1);
            self.stats.refused(refusal.reason());
        }
        verdict
    }

    async fn verdict(
        &self,
        peer: Option<&Peer>,
        headers: &http::HeaderMap,
    ) -> Result<Verified, Refusal> {
        if let Some(token) = bearer(headers)? {
            let mut verdicts = self.sources.iter().filter_map(|source| source.verify(token));
            return match verdicts.next() {
                Some(verdict) => verdict.await,
                None => Err(Refusal::TokenSort),
            };
        }
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        let verified = certificate.ok_or(Refusal::NoCredential)?.clone()?;
        // It held when the connection was made.
        verified.check()?;
        Ok(verified)
    }
}

/// The token of a call.
fn bearer(headers: &http::HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(http::header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Refusal::TokenSort)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Refusal::TokenSort),
    }
}

// === impl Refusal ===

impl Refusal {
    /// One word for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::Certificate(_) => "certificate",
            Self::Expired("certificate") => "certificate_expired",
            Self::Expired(_) => "token_expired",
            Self::TokenSort => "token_sort",
            Self::TokenSignature => "token_signature",
            Self::TokenAudience(_) => "token_audience",
            Self::TokenIssuer => "token_issuer",
            Self::TokenSubject(_) => "token_subject",
            Self::TokenReview(_) => "token_review",
            Self::JoinToken => "join_token",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Jwt => "JWT",
            Self::ServiceAccount => "service account token",
            Self::JoinToken => "join token",
        })
    }
}
