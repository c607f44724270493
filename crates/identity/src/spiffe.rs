//! SPIFFE ids of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! In: text. Out: a checked value, printed as the same text.
//!
//! **Invariant:** a value of these types is always well-formed, so comparing texts compares ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of the realm whose roots sign its ids, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// The identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not usable as {what}: {why}")]
pub struct BadId {
    text: String,
    what: &'static str,
    why: &'static str,
}

/// Longest id, by the SPIFFE standard.
const LONGEST_ID: usize = 2048;
/// Longest trust domain, by the SPIFFE standard.
const LONGEST_DOMAIN: usize = 255;
/// Longest namespace or service account, by Kubernetes.
const LONGEST_NAME: usize = 253;

// === impl TrustDomain ===

impl TrustDomain {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = BadId;

    /// Lower-case letters, digits, `.`, `-`, `_`; at most 255 of them.
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |why| Err(BadId::new(text, "a trust domain", why));
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > LONGEST_DOMAIN {
            return bad("it is longer than 255 characters");
        }
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !text.bytes().all(allowed) {
            return bad("only lower-case letters, digits, '.', '-' and '_' are allowed");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// The id of a service account.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, BadId> {
        Ok(Self {
            trust_domain: trust_domain.clone(),
            namespace: segment(namespace, "a namespace")?,
            service_account: segment(service_account, "a service account")?,
        })
    }

    /// Its realm.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Namespace of the workload.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Service account that the workload runs as.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |why| BadId::new(text, "a SPIFFE id", why);
        if text.len() > LONGEST_ID {
            return Err(bad("it is longer than 2048 characters"));
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| bad("it must begin spiffe://"))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts[..] else {
            return Err(bad("it must be spiffe://DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"));
        };
        Self::new(&domain.parse()?, namespace, account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

// === impl BadId ===

impl BadId {
    fn new(text: &str, what: &'static str, why: &'static str) -> Self {
        // Text from strangers: no more of it than a log line takes.
        Self { text: text.chars().take(300).collect(), what, why }
    }
}

/// One segment of the path: letters, digits, `.`, `-`, `_`, and not a relative step.
fn segment(text: &str, what: &'static str) -> Result<Arc<str>, BadId> {
    let bad = |why| Err(BadId::new(text, what, why));
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > LONGEST_NAME {
        return bad("it is longer than 253 characters");
    }
    if text == "." || text == ".." {
        return bad("it must not be a relative path");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !text.bytes().all(allowed) {
        return bad("only letters, digits, '.', '-' and '_' are allowed");
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printed_as_it_was_read() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let id: SpiffeId = text.parse().expect("valid");
        assert_eq!((id.namespace(), id.service_account()), ("shop", "web"));
        assert_eq!(id.trust_domain().as_str(), "cluster.local");
        assert_eq!(id.to_string(), text);
    }

    #[test]
    fn what_is_no_id_says_why() {
        for (text, why) in [
            ("", "must begin"),
            ("https://cluster.local/ns/a/sa/b", "must begin"),
            ("SPIFFE://cluster.local/ns/a/sa/b", "must begin"),
            ("spiffe://cluster.local/ns/a", "DOMAIN/ns"),
            ("spiffe://cluster.local/ns/a/sa/b/c", "DOMAIN/ns"),
            ("spiffe://cluster.local/ns/a/sa/b/", "DOMAIN/ns"),
            ("spiffe://cluster.local/sa/b/ns/a", "DOMAIN/ns"),
            ("spiffe:///ns/a/sa/b", "empty"),
            ("spiffe://Cluster.local/ns/a/sa/b", "lower-case"),
            ("spiffe://user@cluster.local/ns/a/sa/b", "lower-case"),
            ("spiffe://cluster.local:80/ns/a/sa/b", "lower-case"),
            ("spiffe://cluster.local/ns//sa/b", "empty"),
            ("spiffe://cluster.local/ns/../sa/b", "relative"),
            ("spiffe://cluster.local/ns/a%2f/sa/b", "letters"),
            ("spiffe://cluster.local/ns/a/sa/b?x=1", "letters"),
            ("spiffe://cluster.local/ns/a\0/sa/b", "letters"),
        ] {
            let error = text.parse::<SpiffeId>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let long = format!("spiffe://cluster.local/ns/{}/sa/b", "a".repeat(254));
        assert!(long.parse::<SpiffeId>().is_err());
    }
}
