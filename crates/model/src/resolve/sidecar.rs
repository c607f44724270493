//! What leaves a workload: the hosts that a sidecar routes.
//!
//! A host on a port is one virtual host. What it comes to depends on the namespace of the client,
//! but nearly all namespaces get the same: `HostViews` says what everybody gets, and what those
//! namespaces get instead that some object names. A scope is then the sum over all hosts of what
//! everybody gets, with the exceptions of one namespace laid over it; only where a `SidecarScope`
//! narrows the hosts is it made of views of its own.
//!
//! **Invariant:** a namespace for which a host comes to something else than for everybody is named
//! by a service, rule or policy that is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client::Client;
use super::destination::{Outcome, examine, whole};
use super::rules::{Excluded, Head, RulesHead, holds};
use super::virtual_host::BoundRules;
use super::{
    BuiltIn, ClusterKey, HostKey, HostNames, Key, Labels, Otherwise, RowKey, RowSet, precedence,
};
use crate::hosts;
use crate::names;
use crate::rows::{
    GatewayName, HostPattern, HostScope, OutboundPolicy, Protocol, Service, ServicePort,
    SidecarScope, TcpMatch, Visibility,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Port of hosts that rules declare and no service does.
const DEFAULT_PORT: u16 = 80;

/// Whose sidecars: a client, and the scope that narrows what it may reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Viewer {
    pub(crate) client: Client,
    pub(crate) scope: Option<RowId>,
    /// Of the labels that rules ask for, those that the workload carries.
    pub(crate) labels: BTreeSet<Labels>,
}

/// What connections to a port come to by a rule list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpSplit {
    pub(crate) rules: RowId,
    pub(crate) viewer: Viewer,
    pub(crate) port: u16,
}

/// Rows that every sidecar has, whatever hosts there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BaseView(pub(crate) Viewer);

/// Rows that every HTTP port has: listener, routes, the `*` host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PortView {
    pub(crate) viewer: Viewer,
    pub(crate) port: u16,
}

/// Rows of a host for one viewer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostView {
    pub(crate) host: Arc<str>,
    pub(crate) viewer: Viewer,
}

/// Rows of a host for everybody, and for the namespaces that get others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostViews(pub(crate) Arc<str>);

/// The value of `HostViews`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Views {
    pub(crate) everybody: Arc<RowSet>,
    pub(crate) others: BTreeMap<Arc<str>, Arc<RowSet>>,
}

/// Namespaces that services of a host and policies for it name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mentions(pub(crate) Arc<str>);

/// Hosts that a scope lets through, whether or not they are visible.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Imported(pub(crate) RowId);

/// All rows of a viewer. Nobody wants them but sidecars that do not share what everybody gets: their
/// hosts are narrowed, or their Envoy cannot discover virtual hosts one by one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SidecarRows(pub(crate) Viewer);

/// Whether a scope narrows nothing, so that its sidecars get what everybody gets.
pub(super) fn is_wide(view: &View<'_>, scope: &SidecarScope) -> bool {
    let all = |p: &HostPattern| p.scope == HostScope::Any && &*p.host == "*";
    let policy = view.mesh().outbound;
    scope.excluded.is_empty()
        && scope.outbound.is_none_or(|own| own == policy)
        && scope.egress.as_ref().is_none_or(|egress| egress.iter().any(all))
}

/// What becomes of requests to hosts that nothing declares.
fn outbound_policy(view: &View<'_>, viewer: &Viewer) -> OutboundPolicy {
    let scope = viewer.scope.as_ref().and_then(|id| view.sidecar_scope(id));
    scope.and_then(|scope| scope.outbound).unwrap_or_else(|| view.mesh().outbound)
}

/// Whether a scope lets a host of an object of this namespace through.
fn lets_through(scope: &SidecarScope, namespace: &Arc<str>, host: &str) -> bool {
    let matches = |p: &HostPattern| p.admits(namespace) && hosts::covers(&p.host, host);
    scope.egress.as_ref().is_none_or(|egress| egress.iter().any(matches))
        && !scope.excluded.iter().any(matches)
}

/// Rule lists that claim a host or a pattern that covers it, for the mesh; most specific pattern
/// first.
fn claims(view: &View<'_>, host: &str) -> Vec<Vec<(RowId, Head)>> {
    let head = |id: RowId| Some((id.clone(), (*view.get(&RulesHead(id))).clone()?));
    hosts::patterns_for(host)
        .into_iter()
        .map(|pattern| view.claims(&GatewayName::Mesh, &pattern).into_iter().filter_map(head))
        .map(Iterator::collect)
        .collect()
}

/// The rule list that applies to a host: of the most specific pattern the first in precedence.
fn winner(view: &View<'_>, host: &str, viewer: &Viewer, says: fn(&Head) -> bool) -> Option<RowId> {
    let scope = viewer.scope.as_ref().and_then(|id| view.sidecar_scope(id));
    let applies = |head: &Head| {
        says(head)
            && viewer.client.sees(&view.visibility_of_rules(head))
            && scope.as_ref().is_none_or(|s| lets_through(s, &head.namespace, host))
    };
    claims(view, host).into_iter().find_map(|of_pattern| {
        let here = of_pattern.iter().filter(|(_, head)| applies(head));
        let first =
            here.min_by(|(a, x), (b, y)| precedence(x.created, a).cmp(&precedence(y.created, b)));
        first.map(|(id, _)| id.clone())
    })
}

/// Bind rules to a port.
fn bind(view: &View<'_>, rules: Option<&RowId>, viewer: &Viewer, port: u16) -> Vec<BoundRules> {
    let bound = rules.map(|id| {
        let client = viewer.client.clone();
        let excluded = view.get(&Excluded {
            rules: id.clone(),
            client: client.clone(),
            labels: viewer.labels.clone(),
            bound: BTreeSet::from([GatewayName::Mesh]),
        });
        let outcome = view.get(&Outcome { rules: id.clone(), client, port });
        BoundRules { id: id.clone(), ports: BTreeSet::from([port]), excluded, outcome }
    });
    bound.into_iter().collect()
}

/// Add a virtual host and the clusters that it names.
fn add_host(rows: &mut RowSet, key: HostKey) {
    let of_rules = key.rules.iter().flat_map(|bound| bound.outcome.iter().flatten().flatten());
    let mut clusters: Vec<ClusterKey> = of_rules.cloned().collect();
    if key.rules.is_empty()
        && let Otherwise::Cluster(cluster) = &key.otherwise
    {
        clusters.push(cluster.clone());
    }
    add_clusters(rows, clusters);
    rows.insert(Arc::new(RowKey::VirtualHost(key)));
}

fn add_clusters(rows: &mut RowSet, clusters: impl IntoIterator<Item = ClusterKey>) {
    for cluster in clusters {
        if cluster.has_endpoints {
            rows.insert(Arc::new(RowKey::Endpoints(cluster.clone())));
        }
        rows.insert(Arc::new(RowKey::Cluster(cluster)));
    }
}

/// Add the listeners of a service's ports that are no HTTP. A service without addresses of its own
/// is reached by those of its endpoints, as the client meant.
fn add_tcp(
    view: &View<'_>,
    rows: &mut RowSet,
    host: &str,
    viewer: &Viewer,
    (id, service): (&RowId, &Service),
) {
    let is_tcp = |p: &&ServicePort| matches!(p.protocol, Protocol::Tcp | Protocol::Tls);
    if service.addresses.is_empty() || !service.ports.iter().any(|p| is_tcp(&p)) {
        return;
    }
    let rules = winner(view, host, viewer, |head| head.has_tcp);
    for port in service.ports.iter().filter(is_tcp).map(|p| p.number) {
        let by_rules = rules.clone().and_then(|rules| {
            (*view.get(&TcpSplit { rules, viewer: viewer.clone(), port })).clone()
        });
        let split =
            by_rules.unwrap_or_else(|| vec![(whole(view, &viewer.client, id, service, port), 1)]);
        add_clusters(rows, split.iter().map(|(cluster, _)| cluster.clone()));
        let owned = service.addresses.iter().filter(|address| view.owns(id, **address, port));
        for address in owned {
            rows.insert(Arc::new(RowKey::TcpListener {
                address: *address,
                port,
                service: id.clone(),
                split: split.clone(),
            }));
        }
    }
}

/// Namespaces that a visibility names.
fn named(visibility: Visibility) -> BTreeSet<Arc<str>> {
    match visibility {
        Visibility::Everyone => BTreeSet::new(),
        Visibility::Namespaces(namespaces) => namespaces,
    }
}

// === impl BaseView ===

impl Query for BaseView {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let policy = outbound_policy(view, &self.0);
        let listener = RowKey::VirtualOutbound { policy };
        RowSet::from([Arc::new(listener), Arc::new(RowKey::BuiltIn(BuiltIn::of(policy)))])
    }

    fn key(&self) -> Key {
        Key::BaseView(self.clone())
    }
}

// === impl PortView ===

impl Query for PortView {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let Self { viewer, port } = self;
        let policy = outbound_policy(view, viewer);
        let name = names::outbound_route_config(*port);
        let rules = winner(view, "*", viewer, |head| head.has_http);
        let mut rows = RowSet::from([
            Arc::new(RowKey::OutboundListener { port: *port, policy }),
            Arc::new(RowKey::RouteConfiguration {
                name: Arc::clone(&name),
                inline: None,
                servers: Vec::new(),
            }),
            Arc::new(RowKey::BuiltIn(BuiltIn::of(policy))),
        ]);
        let host = HostKey {
            route_config: name,
            domain: Arc::from("*"),
            names: HostNames::Domain,
            rules: bind(view, rules.as_ref(), viewer, *port),
            otherwise: Otherwise::Policy(policy),
            servers: Vec::new(),
        };
        add_host(&mut rows, host);
        rows
    }

    fn key(&self) -> Key {
        Key::PortView(self.clone())
    }
}

// === impl HostView ===

impl Query for HostView {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let Self { host, viewer } = self;
        let mut rows = RowSet::new();
        let service = view.service(host, &viewer.client);
        let rules = winner(view, host, viewer, |head| head.has_http);
        if let Some((id, service)) = &service {
            add_tcp(view, &mut rows, host, viewer, (id, service));
        }
        let ports: BTreeSet<u16> = match &service {
            Some((_, service)) => {
                let http = service.ports.iter().filter(|p| p.protocol.is_http());
                http.map(|p| p.number).collect()
            }
            None if rules.is_some() && !view.is_alias(host) => BTreeSet::from([DEFAULT_PORT]),
            None => return rows,
        };
        for port in ports {
            let (names, otherwise) = match &service {
                Some((id, row)) => (
                    HostNames::Service {
                        id: id.clone(),
                        own: viewer.client.is_of(&row.namespace),
                        port,
                    },
                    Otherwise::Cluster(whole(view, &viewer.client, id, row, port)),
                ),
                None => (HostNames::Domain, Otherwise::NotFound),
            };
            let host = HostKey {
                route_config: names::outbound_route_config(port),
                domain: Arc::clone(host),
                names,
                rules: bind(view, rules.as_ref(), viewer, port),
                otherwise,
                servers: Vec::new(),
            };
            add_host(&mut rows, host);
            let shared = view.get(&PortView { viewer: viewer.clone(), port });
            rows.extend(shared.iter().cloned());
        }
        rows
    }

    fn key(&self) -> Key {
        Key::HostView(self.clone())
    }
}

// === impl HostViews ===

impl Query for HostViews {
    type Value = Views;

    fn run(&self, view: &View<'_>) -> Views {
        let host = &self.0;
        let of = |client| HostView {
            host: Arc::clone(host),
            viewer: Viewer { client, scope: None, labels: BTreeSet::new() },
        };
        let everybody = view.get(&of(Client::Anyone));
        let mut namespaces = (*view.get(&Mentions(Arc::clone(host)))).clone();
        namespaces.extend(view.services_of(host).iter().map(|(_, s)| Arc::clone(&s.namespace)));
        for (_, head) in claims(view, host).into_iter().flatten() {
            namespaces.extend(named(view.visibility_of_rules(&head)));
            namespaces.extend(head.source_namespaces.iter().cloned());
            for destination in &head.destinations {
                namespaces.extend(view.get(&Mentions(Arc::clone(destination))).iter().cloned());
            }
        }
        let mut others = BTreeMap::new();
        for namespace in namespaces {
            let own = view.get(&of(Client::Namespace(Arc::clone(&namespace))));
            if own != everybody {
                others.insert(namespace, own);
            }
        }
        Views { everybody, others }
    }

    fn key(&self) -> Key {
        Key::HostViews(self.clone())
    }
}

// === impl Mentions ===

impl Query for Mentions {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        let services = view.services_of(&self.0);
        for (_, service) in &services {
            namespaces.extend(named(view.visibility_of_service(service)));
        }
        for pattern in hosts::patterns_for(&self.0) {
            for (_, policy) in view.policies_for(&pattern) {
                namespaces.extend(named(view.visibility_of_policy(&policy)));
                namespaces.insert(Arc::clone(&policy.namespace));
            }
        }
        namespaces
    }

    fn key(&self) -> Key {
        Key::Mentions(self.clone())
    }
}

// === impl SidecarRows ===

impl Query for SidecarRows {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let viewer = &self.0;
        let hosts = match &viewer.scope {
            Some(scope) => view.get(&Imported(scope.clone())),
            None => Arc::new(view.all_hosts()),
        };
        let mut rows = (*view.get(&BaseView(viewer.clone()))).clone();
        for host in hosts.iter() {
            let query = HostView { host: Arc::clone(host), viewer: viewer.clone() };
            rows.extend(view.get(&query).iter().cloned());
        }
        rows
    }

    fn key(&self) -> Key {
        Key::SidecarRows(self.clone())
    }
}

// === impl TcpSplit ===

impl Query for TcpSplit {
    /// None when no rule is for such connections.
    type Value = Option<Vec<(ClusterKey, u32)>>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let Self { rules, viewer, port } = self;
        let list = view.rules(rules)?;
        let bound = BTreeSet::from([GatewayName::Mesh]);
        let matches = |m: &TcpMatch| {
            m.port.is_none_or(|wanted| wanted == *port)
                && holds(&m.source, &viewer.client, &viewer.labels, &bound)
        };
        let rule =
            list.tcp.iter().find(|r| r.matches.is_empty() || r.matches.iter().any(matches))?;
        let examined = examine(view, &viewer.client, &rule.destinations, *port);
        let shares = rule.destinations.iter().zip(examined);
        let mut split: Vec<(ClusterKey, u32)> = Vec::new();
        for (destination, (cluster, _)) in shares {
            let Some(cluster) = cluster else { continue };
            match split.iter_mut().find(|(known, _)| *known == cluster) {
                Some((_, weight)) => *weight = weight.saturating_add(destination.weight),
                None => split.push((cluster, destination.weight)),
            }
        }
        // A weight of nothing is no member of Envoy's split.
        split.retain(|(_, weight)| *weight > 0);
        (!split.is_empty()).then_some(split)
    }

    fn key(&self) -> Key {
        Key::TcpSplit(self.clone())
    }
}

// === impl Imported ===

impl Query for Imported {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        let Some(scope) = view.sidecar_scope(&self.0) else { return found };
        let everything = [HostPattern { scope: HostScope::Any, host: Arc::from("*") }];
        for pattern in scope.egress.as_deref().unwrap_or(&everything) {
            for (namespace, host) in view.declared(pattern) {
                if lets_through(&scope, &namespace, &host) {
                    found.insert(host);
                }
            }
        }
        found
    }

    fn key(&self) -> Key {
        Key::Imported(self.clone())
    }
}
