//! Groups: proxies that are to have the same configuration.
//!
//! **Invariant:** raw labels never enter a group, only what they select.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{View, selects};
use crate::proxy::{Capabilities, Proxy, Role};
use crate::rows::TargetPort;
use crate::snapshot::RowId;

/// What decides a proxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
pub(crate) fn group(view: View<'_>, proxy: &Proxy) -> Group {
    let workload = view.workload(&proxy.namespace, &proxy.name);
    let labels = workload.map_or(&proxy.labels, |w| &w.labels);
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
    group.gateways = view
        .gateways()
        .filter(|(_, gateway)| selects(&gateway.selector, labels))
        .map(|(id, _)| id.clone())
        .collect();
    for (_, service) in view.services() {
        if service.namespace != proxy.namespace
            || service.selector.is_empty()
            || !selects(&service.selector, labels)
        {
            continue;
        }
        for port in &service.ports {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => workload.and_then(|w| w.named_ports.get(name).copied()),
            };
            if let Some(target) = target {
                group.ports.entry(port.number).or_insert(target);
            }
        }
    }
    // Only ports that a server opens matter; others would split equal groups.
    let opened: Vec<u16> = group
        .gateways
        .iter()
        .filter_map(|id| view.gateway(id))
        .flat_map(|(_, gateway)| gateway.servers.iter().map(|s| s.port))
        .collect();
    group.ports.retain(|declared, target| declared != target && opened.contains(declared));
    group
}
