//! What decides a scope, for people who ask why a proxy sees what it sees.
//!
//! **Invariant:** says only what is the same as long as the scope exists.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Engine, ScopeId};
use crate::object::ObjectRef;
use crate::resolve::{Group, GroupRole};
use crate::rows::Locality;
use crate::snapshot::RowId;

/// What the proxies of a scope have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Whether virtual hosts travel one by one.
    pub vhds: bool,
    /// Whether they have what everybody gets, with the exceptions of their namespace.
    pub shares: bool,
    /// What else decides.
    pub role: AboutRole,
}

/// What decides by role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AboutRole {
    /// At an edge.
    Router {
        /// Gateways that select them.
        gateways: Vec<Arc<ObjectRef>>,
        /// Declared port → port to listen on, where a service in front maps it.
        ports: BTreeMap<u16, u16>,
        /// Where they run, as far as that matters.
        near: Option<Locality>,
    },
    /// Beside workloads.
    Sidecar {
        /// The object that narrows what they reach. Shape: none = nothing narrows it.
        sidecar: Option<Arc<ObjectRef>>,
        /// Labels that they carry and that conditions of rules ask for.
        labels: Vec<BTreeMap<Arc<str>, Arc<str>>>,
        /// Where they run, as far as that matters.
        near: Option<Locality>,
        /// Whether connections of the workloads are captured.
        captures: bool,
        /// Ports on which the workloads take connections.
        inbound: Vec<u16>,
    },
}

// === impl Engine ===

impl Engine {
    /// What decides a scope; none when there is no such scope. Costs as much as there are scopes.
    pub fn about(&self, scope: ScopeId) -> Option<About> {
        let (group, _) = self.groups.iter().find(|(_, members)| members.id == scope)?;
        let object = |id: &RowId| Arc::clone(&id.object);
        let Group { namespace, capabilities, role } = &**group;
        let role = match role {
            GroupRole::Router { gateways, ports, near } => AboutRole::Router {
                near: near.as_ref().map(|near| near.locality.clone()),
                gateways: gateways.iter().map(object).collect(),
                ports: ports.clone(),
            },
            GroupRole::Sidecar { viewer, inbound, others: _ } => AboutRole::Sidecar {
                sidecar: viewer.scope.as_ref().map(object),
                labels: viewer.labels.iter().cloned().collect(),
                near: viewer.near.as_ref().map(|near| near.locality.clone()),
                captures: viewer.captures,
                inbound: inbound.iter().map(|port| port.port).collect(),
            },
        };
        let namespace = Arc::clone(namespace);
        Some(About { namespace, vhds: capabilities.vhds, shares: group.shares(), role })
    }
}
