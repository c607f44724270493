//! Events on the Secrets of the authority: what `kubectl events --for=secret/cacerts` shows.
//!
//! In: what is wrong with a Secret, when the authority ends. Out: events, each once.
//!
//! **Invariant:** writes as the leader only; tells nothing that is secret.

use std::sync::Arc;
use std::time::SystemTime;

use identity::Authority;
use identity::ca::{at, ends_within};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::serve::identifier;
use crate::world::Shared;

/// How we sign what we write.
const MANAGER: &str = "heddle";
/// Longest note. Unit: characters, of which each may take 4 bytes; the API takes 1,024.
const LONGEST_NOTE: usize = 250;

/// Writes them.
pub(super) struct Events {
    recorder: Recorder,
    namespace: String,
    shared: Arc<Shared>,
    /// The days before the authority's end of which people were told.
    told: Option<u64>,
}

// === impl Events ===

impl Events {
    /// About Secrets of the client's namespace.
    pub(super) fn new(client: &Client, shared: Arc<Shared>) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identifier()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            namespace: client.default_namespace().to_owned(),
            shared,
            told: None,
        }
    }

    /// Tell of an authority's end, 30, 14, 7 and 1 days before it.
    pub(super) async fn of_end(&mut self, secret: &str, authority: &Authority, now: SystemTime) {
        let end = authority.about().not_after;
        let due = ends_within(end, now);
        let Some(days) = due.filter(|_| due != self.told) else {
            self.told = due.and(self.told);
            return;
        };
        let end = at(end);
        let note = format!("the certificate authority ends at {end}, within {days} days");
        if self.write(secret, "CertificateAuthorityEnds", "Renew", &note).await {
            self.told = due;
        }
    }

    /// Tell why a Secret is not used.
    pub(super) async fn of_fault(&mut self, secret: &str, why: &str) {
        self.write(secret, "BadCertificateAuthority", "Check", why).await;
    }

    /// Whether it was written.
    async fn write(&self, secret: &str, reason: &str, action: &str, note: &str) -> bool {
        if !*self.shared.leading.borrow() {
            return false;
        }
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(secret.to_owned()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.chars().take(LONGEST_NOTE).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        let written = self.recorder.publish(&event, &reference).await;
        if let Err(error) = &written {
            tracing::debug!("an event cannot be written: {error}");
        }
        written.is_ok()
    }
}
