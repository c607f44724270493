//! What people see of a session.
//!
//! **Invariant:** a copy; reading it changes nothing.

use std::sync::Arc;
use std::time::Duration;

use envoy_api::ResourceType;

use super::Session;

/// State of one type of one stream. Times are since the stream began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub resource_type: ResourceType,
    /// Whether everything is subscribed to.
    pub wildcard: bool,
    /// Number of names subscribed to.
    pub names: usize,
    /// Number of resources held.
    pub held: usize,
    /// Version of what the proxy will have when it accepts everything in flight.
    pub sent_version: String,
    /// Version of what the proxy accepted.
    pub acked_version: String,
    /// Nonce of the last response; empty = none.
    pub sent_nonce: String,
    /// Nonce of the last ACK; empty = none.
    pub acked_nonce: String,
    /// Nonce of the last NACK; empty = none.
    pub rejected_nonce: String,
    /// Text of the last NACK.
    pub error: Option<String>,
    /// Number of responses.
    pub sent: u64,
    /// Number of ACKs.
    pub acked: u64,
    /// Number of NACKs.
    pub rejected: u64,
    /// Time of the last response.
    pub sent_at: Option<Duration>,
    /// Time of the last ACK.
    pub acked_at: Option<Duration>,
    /// Time of the last NACK.
    pub rejected_at: Option<Duration>,
    /// Responses neither ACKed nor NACKed.
    pub in_flight: usize,
    /// How many of those are pushes: answers, children and suspects sent alone are not. Above one
    /// only for the parts of a split.
    pub pushes: usize,
    /// Whether one of those is overdue (R29).
    pub stale: bool,
    /// Whether anything was asked for that is not answered yet.
    pub unanswered: bool,
    /// Names that wait for a reference or a referrer.
    pub waiting: Vec<Arc<str>>,
    /// Names whose wanted version was refused.
    pub parked: Vec<Arc<str>>,
}

// === impl Session ===

impl Session {
    /// The state of every type that the proxy asked for.
    pub fn status(&self, now: Duration) -> Vec<TypeStatus> {
        let seen = ResourceType::ALL.into_iter();
        let seen = seen.filter(|resource_type| self.state(*resource_type).seen);
        seen.map(|resource_type| self.type_status(resource_type, now)).collect()
    }

    fn type_status(&self, resource_type: ResourceType, now: Duration) -> TypeStatus {
        let state = self.state(resource_type);
        let tally = state.tally.clone();
        let nonce = |nonce: u64| match nonce {
            0 => String::new(),
            nonce => nonce.to_string(),
        };
        let overdue = |at: Duration| now.saturating_sub(at) > self.settings.stale;
        TypeStatus {
            resource_type,
            wildcard: state.wildcard,
            names: state.names.len(),
            held: state.held.len(),
            sent_version: format!("{:016x}", state.expected_version()),
            acked_version: format!("{:016x}", state.held.sum()),
            sent_nonce: nonce(tally.sent_nonce),
            acked_nonce: nonce(tally.acked_nonce),
            rejected_nonce: nonce(tally.rejected_nonce),
            error: tally.error,
            sent: tally.sent,
            acked: tally.acked,
            rejected: tally.rejected,
            sent_at: tally.sent_at,
            acked_at: tally.acked_at,
            rejected_at: tally.rejected_at,
            in_flight: state.sent.len(),
            pushes: state.sent.values().filter(|sent| sent.push).count(),
            stale: state.sent.values().any(|sent| overdue(sent.at)),
            unanswered: state.due.is_some() || !state.asked.is_empty(),
            waiting: state.waiting.keys().cloned().collect(),
            parked: state.parked.keys().cloned().collect(),
        }
    }
}
