//! Groups: proxies that are to have the same configuration.
//!
//! **Invariant:** raw labels never enter a group, only what they select.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Key;
use crate::proxy::{Capabilities, Proxy, Role};
use crate::rows::TargetPort;
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// What decides a proxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    pub(crate) role: Role,
    pub(crate) namespace: Arc<str>,
    pub(crate) capabilities: Capabilities,
    /// Gateways that select it; none for a sidecar.
    pub(crate) gateways: Vec<RowId>,
    /// Declared port → port to listen on, where a service in front maps it.
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// The group of a proxy: a query, so that a relabelled workload is re-scoped live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupOf(pub(crate) Arc<Proxy>);

// === impl GroupOf ===

impl Query for GroupOf {
    type Value = Group;

    fn run(&self, view: &View<'_>) -> Group {
        let proxy = &self.0;
        let mut group = Group {
            role: proxy.role,
            namespace: Arc::clone(&proxy.namespace),
            capabilities: proxy.capabilities,
            gateways: Vec::new(),
            ports: BTreeMap::new(),
        };
        if proxy.role == Role::Sidecar {
            return group;
        }
        let workload = view.workload(&proxy.namespace, &proxy.name);
        let labels = workload.as_ref().map_or(&proxy.labels, |w| &w.labels);
        group.gateways = view.gateways_selecting(labels);
        // Only ports that a server opens matter; others would split equal groups.
        let opened: BTreeSet<u16> = group
            .gateways
            .iter()
            .filter_map(|id| view.gateway(id))
            .flat_map(|gateway| gateway.servers.iter().map(|s| s.port).collect::<Vec<_>>())
            .collect();
        for (_, service) in view.services_selecting(&proxy.namespace, labels) {
            for port in service.ports.iter().filter(|p| opened.contains(&p.number)) {
                let target = match &port.target {
                    TargetPort::Number(number) => Some(*number),
                    TargetPort::Name(name) => {
                        workload.as_ref().and_then(|w| w.named_ports.get(name).copied())
                    }
                };
                if let Some(target) = target {
                    group.ports.entry(port.number).or_insert(target);
                }
            }
        }
        group.ports.retain(|declared, target| declared != target);
        group
    }

    fn key(&self) -> Key {
        Key::Group(self.clone())
    }
}
