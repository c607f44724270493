//! Tokens of a cluster's service accounts, judged by its API server.
//!
//! In: a token. Out: the workload that the API server says it belongs to. Only the API server
//! knows that a ServiceAccount or a pod is gone, so it is asked again after `FRESH`; keys that
//! verify signatures would not know, so they are no substitute for it.
//!
//! What the cluster's public keys show to be forged is refused without asking: strangers must not
//! keep the API server busy, nor keep others waiting.
//!
//! While the API server is away a kept answer goes on to hold until the token ends; about any
//! other token nothing is known, and nobody is let in.
//!
//! **Invariant:** the identity is what the API server answered about the very token; tokens are
//! kept as hashes only, and a bounded number of them.

mod keys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use identity::authenticate::Verdict;
use identity::jwt::{self, AUDIENCE, Unchecked};
use identity::{Method, Refusal, SpiffeId, TokenSource, TrustDomain, Verified};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use self::keys::Keys;

/// For how long an answer holds without asking again: a deleted ServiceAccount, or the token of a
/// deleted pod, is refused after this at the latest.
const FRESH: Duration = Duration::from_secs(30);
/// The same for a refusal: a token may be older than the API server's knowledge of its pod.
const FRESH_REFUSAL: Duration = Duration::from_secs(5);
/// Answers that are kept, and refusals, which strangers can cause in any number.
const KEPT: (usize, usize) = (16_384, 1024);
/// Questions to the API server at once; whoever comes then waits.
const AT_ONCE: usize = 16;
/// Time for waiting and for the answer, each.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the API server says about the pod of a token, beside its user.
const NODE: &str = "authentication.kubernetes.io/node-name";
/// Longest text of the API server that is passed on. Unit: characters.
const LONGEST_REASON: usize = 300;

/// Asks the API server.
pub(super) struct Reviewer {
    api: Api<TokenReview>,
    keys: Keys,
    trust_domain: TrustDomain,
    at_once: Semaphore,
    kept: Mutex<Kept>,
}

type Hash = [u8; 32];
type Answer = Result<Subject, Refusal>;

/// Whom a token belongs to.
#[derive(Clone)]
struct Subject {
    id: SpiffeId,
    /// The node of the pod that it was made for.
    node: Option<Arc<str>>,
}

/// What was answered.
#[derive(Default)]
struct Kept {
    believed: HashMap<Hash, Review>,
    refused: HashMap<Hash, Review>,
}

/// One answer.
#[derive(Clone)]
struct Review {
    answer: Answer,
    at: Instant,
    /// End of the token.
    expires: SystemTime,
}

// === impl Reviewer ===

impl Reviewer {
    /// Ask the API server that this is a client of.
    pub(super) fn new(client: Client, trust_domain: TrustDomain) -> Self {
        Self {
            keys: Keys::new(client.clone()),
            api: Api::all(client),
            trust_domain,
            at_once: Semaphore::new(AT_ONCE),
            kept: Mutex::default(),
        }
    }

    async fn check(&self, token: &str) -> Result<Verified, Refusal> {
        // What is not for us by its own words need not be asked about.
        let Unchecked { expires } = jwt::unchecked(token)?;
        let hash = jwt::hash(token);
        let fresh = self.kept().fresh(&hash);
        let answer = match fresh {
            Some(answer) => answer,
            None => self.ask_or_remember(token, hash, expires).await?,
        };
        let Subject { id, node } = answer?;
        let verified = Verified::new(id, Method::ServiceAccount, expires, SystemTime::now())?;
        Ok(verified.on_node(node))
    }

    /// The API server's answer; while it is away what it answered before.
    async fn ask_or_remember(
        &self,
        token: &str,
        hash: Hash,
        expires: SystemTime,
    ) -> Result<Answer, Refusal> {
        if !self.keys.may_be_real(token).await {
            return Err(Refusal::TokenSignature);
        }
        match self.ask(token, &hash).await {
            Ok(answer) => {
                let review = Review { answer: answer.clone(), at: Instant::now(), expires };
                self.kept().add(hash, review, SystemTime::now());
                Ok(answer)
            }
            Err(why) => {
                let kept = self.kept().any(&hash);
                tracing::warn!(kept = kept.is_some(), "tokens cannot be reviewed: {why}");
                kept.ok_or(Refusal::Unavailable(why))
            }
        }
    }

    async fn ask(&self, token: &str, hash: &Hash) -> Result<Answer, String> {
        let late = |_| format!("the API server did not answer within {PATIENCE:?}");
        let permit = timeout(PATIENCE, self.at_once.acquire()).await.map_err(late)?;
        let _permit = permit.map_err(|error| error.to_string())?;
        // Somebody else may have asked about the same token meanwhile.
        if let Some(answer) = self.kept().fresh(hash) {
            return Ok(answer);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let parameters = PostParams::default();
        let asked = timeout(PATIENCE, self.api.create(&parameters, &review));
        let review = asked.await.map_err(late)?.map_err(|error| error.to_string())?;
        let status = review.status.ok_or("the API server answered without a status")?;
        Ok(self.verdict(status))
    }

    /// What an answer says.
    fn verdict(&self, status: TokenReviewStatus) -> Answer {
        if status.authenticated != Some(true) {
            let why = status.error.unwrap_or_else(|| "it gives no reason".to_owned());
            return Err(Refusal::TokenReview(why.chars().take(LONGEST_REASON).collect()));
        }
        // An API server that does not know audiences names none: it checked its own.
        if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
            return Err(Refusal::TokenAudience(AUDIENCE));
        }
        let user = status.user.unwrap_or_default();
        let id = jwt::service_account(&user.username.unwrap_or_default(), &self.trust_domain)?;
        let node = user.extra.and_then(|mut extra| extra.remove(NODE)).unwrap_or_default();
        Ok(Subject { id, node: node.first().map(|node| Arc::from(&**node)) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenSource for Reviewer {
    fn verify<'a>(&'a self, token: &'a str) -> Option<Verdict<'a>> {
        jwt::is_shaped(token).then(|| -> Verdict<'a> { Box::pin(self.check(token)) })
    }
}

// === impl Kept ===

impl Kept {
    /// An answer that need not be asked for again yet.
    fn fresh(&self, hash: &Hash) -> Option<Answer> {
        let fresh = |reviews: &HashMap<Hash, Review>, time| {
            reviews.get(hash).filter(|r| r.at.elapsed() < time).map(|r| r.answer.clone())
        };
        // The newer of the two, which cannot both be there: `add` removes the other.
        fresh(&self.believed, FRESH).or_else(|| fresh(&self.refused, FRESH_REFUSAL))
    }

    /// An answer of whatever age.
    fn any(&self, hash: &Hash) -> Option<Answer> {
        let review = self.believed.get(hash).or_else(|| self.refused.get(hash));
        review.map(|review| review.answer.clone())
    }

    fn add(&mut self, hash: Hash, review: Review, now: SystemTime) {
        self.believed.remove(&hash);
        self.refused.remove(&hash);
        let (reviews, most) = match review.answer {
            Ok(_) => (&mut self.believed, KEPT.0),
            Err(_) => (&mut self.refused, KEPT.1),
        };
        if reviews.len() >= most {
            reviews.retain(|_, review| review.expires > now);
        }
        if reviews.len() >= most
            && let Some(oldest) = reviews.iter().min_by_key(|(_, r)| r.at).map(|(hash, _)| *hash)
        {
            reviews.remove(&oldest);
        }
        reviews.insert(hash, review);
    }
}

#[cfg(test)]
mod tests;
