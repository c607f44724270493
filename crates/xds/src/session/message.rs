//! What goes into a session and what comes out of it, free of any wire format.
//!
//! **Invariant:** no protobuf type and no clock; time is a `Duration` since the stream began.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_api::{ContentHash, EncodedResource, ResourceRef, ResourceType};

use crate::whole::Part;

/// A delta request of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaRequest {
    /// Names to subscribe to; `*` = everything.
    pub subscribe: Vec<String>,
    /// Names to unsubscribe from.
    pub unsubscribe: Vec<String>,
    /// What the proxy holds from an earlier stream: names and version texts.
    pub initial_resource_versions: Vec<(String, String)>,
    /// The response that this answers; empty = none.
    pub nonce: String,
    /// Set = that response was rejected.
    pub error: Option<String>,
}

/// A state-of-the-world request of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SotwRequest {
    /// Every name that the proxy wants now.
    pub names: Vec<String>,
    /// The response that this answers; empty = none.
    pub nonce: String,
    /// Set = that response was rejected.
    pub error: Option<String>,
}

/// A response that is to be written now.
#[derive(Clone, Debug)]
pub struct Response {
    /// Type of all resources in it.
    pub resource_type: ResourceType,
    /// Unique on the stream across types.
    pub nonce: String,
    /// Version of what the proxy will hold of this type; for people in delta.
    pub version: String,
    /// Added or changed resources; in SotW all that the response shall contain.
    pub resources: Resources,
    /// Removed or missing names; always empty in SotW.
    pub removed: Vec<Arc<str>>,
}

/// Resources of a response.
#[derive(Clone, Debug)]
pub enum Resources {
    /// Some that this stream needs.
    Own(Vec<Arc<EncodedResource>>),
    /// A part of everything, as other streams are sent it too.
    Part(Part),
}

/// A response that the proxy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Type of the response.
    pub resource_type: ResourceType,
    /// Its nonce.
    pub nonce: String,
    /// The suspects: all resources of the response, or those that the error names. `None` =
    /// the removal of the name was refused.
    pub resources: Vec<(Arc<str>, Option<ContentHash>)>,
    /// Whether the error is about exactly one resource, which is now parked until it changes.
    pub parked: bool,
    /// What the proxy said.
    pub error: String,
}

/// Something the controller should tell an operator: a wait that ended by its time limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Sent although what it refers to is not held.
    SentBeforeReference {
        /// What was sent.
        resource: ResourceRef,
        /// What is missing.
        missing: Vec<ResourceRef>,
    },
    /// Removed although something held may still refer to it.
    RemovedWhileReferenced {
        /// What was removed.
        resource: ResourceRef,
    },
}

/// Limits of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest wait of an addition for its references and of a removal for its referrers.
    pub gate: Duration,
    /// Longest wait of what a warming listener waits for: routes, and the first LDS answer.
    /// Envoy gives up after 15 s.
    pub first_gate: Duration,
    /// Time from the start of the stream in which references to clusters count although CDS
    /// was not asked for yet: after a reconnect Envoy asks for CDS last.
    pub ask_grace: Duration,
    /// Bytes of resources after which a response is split.
    pub response_bytes: usize,
    /// Age of an un-ACKed response at which the status says stale.
    pub stale: Duration,
    /// Types whose explicitly named resources are sent after a reconnect even when the proxy
    /// already holds their version (R56 to the letter).
    pub resend_on_reconnect: Vec<ResourceType>,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            gate: Duration::from_secs(20),
            first_gate: Duration::from_secs(10),
            ask_grace: Duration::from_millis(500),
            response_bytes: 2 << 20,
            stale: Duration::from_secs(60),
            resend_on_reconnect: Vec::new(),
        }
    }
}

// === impl Resources ===

impl Resources {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Own(resources) => resources.len(),
            Self::Part(part) => part.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leave out those with such names.
    pub(super) fn leave_out(&mut self, which: &dyn Fn(&str) -> bool) {
        if self.iter().any(|resource| which(resource.name())) {
            let rest = self.iter().filter(|resource| !which(resource.name()));
            *self = Self::Own(rest.cloned().collect());
        }
    }

    /// The bytes of a delta response behind its head.
    pub(crate) fn delta_entries(&self) -> Vec<Bytes> {
        match self {
            Self::Own(resources) => resources.iter().map(|r| r.delta_entry()).collect(),
            Self::Part(part) => part.delta_entries(),
        }
    }

    /// The bytes of a response by state of the world behind its head.
    pub(crate) fn sotw_entries(&self) -> Vec<Bytes> {
        match self {
            Self::Own(resources) => resources.iter().map(|r| r.sotw_entry()).collect(),
            Self::Part(part) => part.sotw_entries(),
        }
    }
}

impl Deref for Resources {
    type Target = [Arc<EncodedResource>];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Own(resources) => resources,
            Self::Part(part) => part.resources(),
        }
    }
}

impl<'a> IntoIterator for &'a Resources {
    type Item = &'a Arc<EncodedResource>;
    type IntoIter = std::slice::Iter<'a, Arc<EncodedResource>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

// === impl Response ===

impl Response {
    /// Bytes of the resources.
    pub fn resource_bytes(&self) -> usize {
        self.resources.iter().map(|r| r.delta_entry().len()).sum()
    }
}
