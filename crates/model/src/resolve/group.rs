//! Groups: proxies that are to have the same configuration.
//!
//! **Invariant:** raw labels never enter a group, only what they select.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::authentication::OtherPorts;
use super::client::Client;
use super::inbound::{self, InboundKey};
use super::place::{AskedLabels, Near, asked};
use super::sidecar::{Viewer, is_wide};
use super::{Key, Labels, precedence, selects};
use crate::proxy::{Capabilities, Proxy, Role};
use crate::rows::{SidecarScope, TargetPort, Workload};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// What decides a proxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    pub(crate) namespace: Arc<str>,
    pub(crate) capabilities: Capabilities,
    pub(crate) role: GroupRole,
}

/// What decides it by role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum GroupRole {
    /// At an edge.
    Router {
        /// Gateways that select it.
        gateways: Vec<RowId>,
        /// Declared port → port to listen on, where a service in front maps it.
        ports: BTreeMap<u16, u16>,
        /// Where it runs, as far as that matters for any cluster.
        near: Option<Near>,
    },
    /// Beside a workload.
    Sidecar {
        /// What it sees.
        viewer: Viewer,
        /// Ports on which its workload takes connections.
        inbound: Vec<InboundKey>,
        /// What it takes on others.
        others: OtherPorts,
    },
}

/// The group of a proxy: a query, so that a relabelled workload is re-scoped live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupOf(pub(crate) Arc<Proxy>);

// === impl Group ===

impl Group {
    /// Whether its rows are what everybody gets, with the exceptions of its namespace.
    pub(crate) fn shares(&self) -> bool {
        let alike = |viewer: &Viewer| {
            viewer.scope.is_none()
                && viewer.labels.is_empty()
                && viewer.captures
                && viewer.near.is_none()
        };
        matches!(&self.role, GroupRole::Sidecar { viewer, .. } if alike(viewer))
            && self.capabilities.vhds
    }
}

// === impl GroupOf ===

impl Query for GroupOf {
    type Value = Group;

    fn run(&self, view: &View<'_>) -> Group {
        let proxy = &self.0;
        let workload = view.workload(&proxy.namespace, &proxy.name);
        let labels = workload.as_ref().map_or(&proxy.labels, |w| &w.labels);
        let near = near(view, proxy, workload.as_deref(), labels);
        let role = match proxy.role {
            Role::Router => router(view, proxy, workload.as_deref(), labels, near),
            Role::Sidecar => {
                let namespace = &proxy.namespace;
                let client = Client::Namespace(Arc::clone(namespace));
                let sidecar = sidecar_scope(view, namespace, labels);
                let narrows = sidecar.as_ref().filter(|(_, scope)| !is_wide(view, scope));
                let scope = narrows.map(|(id, _)| id.clone());
                let asked = view.source_labels().into_iter();
                let labels_asked = asked.filter(|wanted| selects(wanted, labels)).collect();
                let captures = proxy.captures;
                let (inbound, others) =
                    inbound::ports(view, proxy, labels, workload.as_deref(), sidecar.as_ref());
                let mutual_tls = proxy.capabilities.mutual_tls;
                let labels = labels_asked;
                let viewer = Viewer { client, scope, labels, captures, near, mutual_tls };
                GroupRole::Sidecar { viewer, inbound, others }
            }
        };
        let namespace = Arc::clone(&proxy.namespace);
        Group { namespace, capabilities: proxy.capabilities, role }
    }

    fn key(&self) -> Key {
        Key::Group(self.clone())
    }
}

/// What of a proxy decides which endpoints it prefers, if that matters for any cluster: where its
/// node is, else where its user says, and labels.
fn near(
    view: &View<'_>,
    proxy: &Proxy,
    workload: Option<&Workload>,
    labels: &Labels,
) -> Option<Near> {
    if !view.places_matter() {
        return None;
    }
    let node = workload.and_then(|w| view.node(w.node.as_ref()?)).map(|node| node.locality.clone());
    let declared = || Some(workload?.declared.as_ref()?.locality.clone());
    let locality = node.or_else(declared).unwrap_or_else(|| proxy.locality.clone());
    let keys = view.get(&AskedLabels);
    let near = Near { locality, labels: asked(&keys, labels) };
    // One that carries none of the labels does not agree either.
    (!keys.is_empty() || near != Near::default()).then_some(near)
}

fn router(
    view: &View<'_>,
    proxy: &Proxy,
    workload: Option<&Workload>,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
    near: Option<Near>,
) -> GroupRole {
    let gateways = view.gateways_selecting(labels);
    // Only ports that a server opens matter; others would split equal groups.
    let opened: BTreeSet<u16> = gateways
        .iter()
        .filter_map(|id| view.gateway(id))
        .flat_map(|gateway| gateway.servers.iter().map(|s| s.port).collect::<Vec<_>>())
        .collect();
    let mut ports = BTreeMap::new();
    for (_, service) in view.services_selecting(&proxy.namespace, labels) {
        for port in service.ports.iter().filter(|p| opened.contains(&p.number)) {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => workload.and_then(|w| w.named_ports.get(name).copied()),
            };
            if let Some(target) = target {
                ports.entry(port.number).or_insert(target);
            }
        }
    }
    ports.retain(|declared, target| declared != target);
    GroupRole::Router { gateways, ports, near }
}

/// The Sidecar of a workload: of its namespace the first that selects it,
/// else the first for all of the namespace, else that of the root namespace.
fn sidecar_scope(
    view: &View<'_>,
    namespace: &Arc<str>,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> Option<(RowId, Arc<SidecarScope>)> {
    let root = Arc::clone(&view.mesh().root_namespace);
    let mut found: Vec<_> = view
        .sidecar_scopes(namespace)
        .into_iter()
        .filter(|(_, scope)| selects(&scope.selector, labels))
        .map(|row| (0, row))
        .collect();
    if *namespace != root {
        let of_root = view.sidecar_scopes(&root).into_iter();
        found.extend(of_root.filter(|(_, s)| s.selector.is_empty()).map(|row| (1, row)));
    }
    let (_, found) = found.into_iter().min_by(|(tier_a, (a, x)), (tier_b, (b, y))| {
        let rank = |tier, scope: &SidecarScope| (tier, scope.selector.is_empty());
        let order = rank(*tier_a, x).cmp(&rank(*tier_b, y));
        order.then_with(|| precedence(x.created, a).cmp(&precedence(y.created, b)))
    })?;
    Some(found)
}
