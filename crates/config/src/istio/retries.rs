//! Retries, as rules and mesh settings write them.
//!
//! **Invariant:** `retryOn` is split into conditions that Envoy knows and status codes.

use std::sync::Arc;

use model::rows::{RetryBackOff, RetryPolicy};
use serde::Deserialize;

use crate::schema::{Field, Type, field, parse_time};

/// Schema of a retry policy.
pub(super) const RETRIES: &[Field] = &[
    // Without it there would be no retries at all; the whole policy goes, and the default stays.
    field("attempts", Type::Integer(0, 1_000_000)).or_parent(),
    field("perTryTimeout", Type::Time(1)),
    field("retryOn", Type::Checked(retry_on)),
    field("retryRemoteLocalities", Type::Bool),
    field("retryIgnorePreviousHosts", Type::Bool),
    field("backoff", Type::Time(1)),
];

const CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// A retry policy as decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Retries {
    attempts: u32,
    per_try_timeout: Option<String>,
    retry_on: Option<String>,
    retry_remote_localities: bool,
    retry_ignore_previous_hosts: Option<bool>,
    backoff: Option<String>,
}

fn retry_on(text: &str) -> Result<(), String> {
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        let code = word.parse::<u16>().is_ok_and(|c| (100..600).contains(&c));
        if !code && !CONDITIONS.contains(&word) {
            return Err(format!(
                "{word:?} is neither a status code nor one of {}",
                CONDITIONS.join(", ")
            ));
        }
    }
    Ok(())
}

// === impl Retries ===

impl Retries {
    /// As the model has it; conditions that are not named are the usual ones.
    pub(super) fn lower(self) -> RetryPolicy {
        let Self {
            attempts,
            per_try_timeout,
            retry_on,
            retry_remote_localities,
            retry_ignore_previous_hosts,
            backoff,
        } = self;
        let default = RetryPolicy::default();
        let time = |t: Option<String>| t.as_deref().and_then(parse_time);
        let (conditions, codes) = match retry_on.as_deref().map(str::trim) {
            None | Some("") => (default.retry_on, default.retriable_status_codes),
            Some(text) => split(text),
        };
        RetryPolicy {
            attempts,
            per_try_timeout: time(per_try_timeout).filter(|t| !t.is_zero()),
            retry_on: conditions,
            retriable_status_codes: codes,
            avoid_previous_hosts: retry_ignore_previous_hosts.unwrap_or(true),
            remote_localities: retry_remote_localities,
            back_off: time(backoff).map(|base| RetryBackOff { base }),
        }
    }
}

fn split(text: &str) -> (Vec<Arc<str>>, Vec<u16>) {
    let (mut conditions, mut codes) = (Vec::new(), Vec::new());
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word.parse::<u16>() {
            Ok(code) => codes.push(code),
            Err(_) => conditions.push(Arc::from(word)),
        }
    }
    codes.sort_unstable();
    codes.dedup();
    (conditions, codes)
}
