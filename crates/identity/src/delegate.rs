//! Node agents: callers who get certificates for others.
//!
//! In: a verified caller, and the identity that it wants a certificate of. Out: whether it may.
//!
//! **Invariant:** without a `Delegation` nobody may.

use std::future::Future;
use std::pin::Pin;

use prost_types::Struct;
use prost_types::value::Kind;

use crate::authenticate::Verified;
use crate::spiffe::{BadId, SpiffeId, TrustDomain};

/// Name of the field of a request's metadata in which node agents name whom they ask for.
const FIELD: &str = "ImpersonatedIdentity";

/// Decides who may ask for whom.
pub trait Delegation: Send + Sync {
    /// Whether `caller` may have a certificate of `id`.
    fn check<'a>(
        &'a self,
        caller: &'a Verified,
        id: &'a SpiffeId,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotDelegated>> + Send + 'a>>;
}

/// Why nobody gets a certificate of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDelegated {
    /// It may not.
    #[error("{0}")]
    Denied(String),
    /// What is asked for is no identity.
    #[error("ImpersonatedIdentity: {0}")]
    Identity(String),
    /// Nobody knows now.
    #[error("it cannot be known now: {0}")]
    Unavailable(String),
}

/// Whom a request is for, where that is not its caller.
pub(crate) fn asked_for(
    metadata: Option<&Struct>,
    trust_domain: &TrustDomain,
) -> Result<Option<SpiffeId>, NotDelegated> {
    let Some(field) = metadata.and_then(|metadata| metadata.fields.get(FIELD)) else {
        return Ok(None);
    };
    let bad = |why: String| NotDelegated::Identity(why);
    let id: SpiffeId = match &field.kind {
        Some(Kind::StringValue(text)) => text.parse().map_err(|e: BadId| bad(e.to_string()))?,
        _ => return Err(bad("it is no text".to_owned())),
    };
    match id.trust_domain() == trust_domain {
        true => Ok(Some(id)),
        false => Err(bad(format!("it is of the trust domain {}", id.trust_domain()))),
    }
}
