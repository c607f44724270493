//! What leaves a workload: the hosts that a sidecar routes.
//!
//! A host on a port is one virtual host. What it comes to depends on the namespace of the client,
//! but nearly all namespaces get the same: `views` says what everybody gets, and what those
//! namespaces get instead that some object names. A scope is then the sum over all hosts of what
//! everybody gets, with the exceptions of one namespace laid over it; only where a `SidecarScope`
//! narrows the hosts is it made of views of its own.
//!
//! **Invariant:** a namespace for which a host comes to something else than for everybody is named
//! by a service, rule or policy that is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::client::Client;
use super::connections::{ChainKey, of_shared, shared, to_address};
use super::destination::{Outcome, whole};
use super::place::{Near, matters};
use super::rules::{Excluded, Head, RulesHead};
use super::view::PortOf;
use super::virtual_host::BoundRules;
use super::{
    BuiltIn, ClusterKey, HostKey, HostNames, Key, Labels, Otherwise, RowKey, RowSet, precedence,
};
use crate::hosts;
use crate::names;
use crate::rows::{
    EgressListener, GatewayName, HostPattern, HostScope, OutboundPolicy, Protocol, SidecarScope,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Port of hosts that rules declare and no service does.
pub(super) const DEFAULT_PORT: u16 = 80;

/// Whose sidecars: a client, and the scope that narrows what it may reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Viewer {
    pub(crate) client: Client,
    pub(crate) scope: Option<RowId>,
    /// Of the labels that rules ask for, those that the workload carries.
    pub(crate) labels: BTreeSet<Labels>,
    /// Whether the connections of the workload are captured; else its proxy opens the ports of
    /// services.
    pub(crate) captures: bool,
    /// Where its workload runs, as far as that matters for any cluster.
    pub(crate) near: Option<Near>,
    /// Whether it holds a certificate of its workload.
    pub(crate) mutual_tls: bool,
}

/// Rows that every sidecar has, whatever hosts there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BaseView(pub(crate) Viewer);

/// Rows that every port has that several services share: listener, routes, the `*` host.
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
    let wide =
        |l: &EgressListener| l.port.is_none() && l.excluded.is_empty() && l.hosts.iter().any(all);
    let policy = view.mesh().outbound;
    scope.outbound.is_none_or(|own| own == policy)
        && scope
            .egress
            .as_ref()
            .is_none_or(|egress| egress.iter().any(wide) && egress.iter().all(|l| l.port.is_none()))
}

/// What becomes of requests to hosts that nothing declares.
fn outbound_policy(view: &View<'_>, viewer: &Viewer) -> OutboundPolicy {
    if !viewer.captures {
        // Nobody knows where the client meant to go.
        return OutboundPolicy::RegistryOnly;
    }
    let scope = viewer.scope.as_ref().and_then(|id| view.sidecar_scope(id));
    scope.and_then(|scope| scope.outbound).unwrap_or_else(|| view.mesh().outbound)
}

/// Whether a listener of a scope lets a host of an object of this namespace through.
fn listener_lets_through(listener: &EgressListener, namespace: &Arc<str>, host: &str) -> bool {
    let matches = |p: &HostPattern| p.admits(namespace) && hosts::covers(&p.host, host);
    listener.hosts.iter().any(matches) && !listener.excluded.iter().any(matches)
}

/// Whether a scope lets a host of an object of this namespace through, on any port.
fn lets_through(scope: &SidecarScope, namespace: &Arc<str>, host: &str) -> bool {
    let Some(egress) = &scope.egress else { return true };
    egress.iter().any(|listener| listener_lets_through(listener, namespace, host))
}

/// Whether a viewer reaches a host of an object of this namespace on a port: listeners for the port
/// decide, else those for no port.
pub(super) fn reaches(
    view: &View<'_>,
    viewer: &Viewer,
    namespace: &Arc<str>,
    host: &str,
    port: u16,
) -> bool {
    let scope = viewer.scope.as_ref().and_then(|id| view.sidecar_scope(id));
    let Some(egress) = scope.as_ref().and_then(|scope| scope.egress.as_ref()) else { return true };
    let own = egress.iter().any(|listener| listener.port == Some(port)).then_some(port);
    let mut deciding = egress.iter().filter(|listener| listener.port == own);
    deciding.any(|listener| listener_lets_through(listener, namespace, host))
}

/// Rule lists that claim a host or a pattern that covers it, for the mesh; most specific pattern
/// first.
pub(super) fn claims(view: &View<'_>, host: &str) -> Vec<Vec<(RowId, Head)>> {
    let head = |id: RowId| Some((id.clone(), (*view.get(&RulesHead(id))).clone()?));
    hosts::patterns_for(host)
        .into_iter()
        .map(|pattern| view.claims(&GatewayName::Mesh, &pattern).into_iter().filter_map(head))
        .map(Iterator::collect)
        .collect()
}

/// The rule list that applies to a host: of the most specific pattern the first in precedence.
pub(super) fn winner(
    view: &View<'_>,
    host: &str,
    viewer: &Viewer,
    says: fn(&Head) -> bool,
) -> Option<RowId> {
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
fn add_host(view: &View<'_>, rows: &mut RowSet, viewer: &Viewer, key: HostKey) {
    let of_rules = key.rules.iter().flat_map(|bound| bound.outcome.iter().flatten().flatten());
    let mut clusters: Vec<ClusterKey> = of_rules.cloned().collect();
    if key.rules.is_empty()
        && let Otherwise::Cluster(cluster) = &key.otherwise
    {
        clusters.push(cluster.clone());
    }
    add_clusters(view, rows, viewer, clusters);
    rows.insert(Arc::new(RowKey::VirtualHost(key)));
}

fn add_clusters(
    view: &View<'_>,
    rows: &mut RowSet,
    viewer: &Viewer,
    clusters: impl IntoIterator<Item = ClusterKey>,
) {
    for cluster in clusters {
        if cluster.has_endpoints {
            let near = viewer.near.as_ref().filter(|_| matters(view, &cluster)).cloned();
            rows.insert(Arc::new(RowKey::Endpoints { cluster: cluster.clone(), near }));
        }
        let mutual_tls = viewer.mutual_tls;
        rows.insert(Arc::new(RowKey::Cluster { cluster, mutual_tls }));
    }
}

/// Add the listeners of a port that is, or may be, no HTTP.
fn add_listeners(view: &View<'_>, rows: &mut RowSet, viewer: &Viewer, of: &PortOf) {
    let PortOf { id, service, .. } = of;
    let (port, number) = (of.port().0, of.number());
    if !port.protocol.is_stream()
        || !reaches(view, viewer, &service.namespace, &service.host, number)
    {
        return;
    }
    let addresses = match (service.headless, port.protocol) {
        _ if !viewer.captures => Vec::new(),
        // It may be HTTP, and that is routed by name.
        (true, Protocol::Unknown) => Vec::new(),
        (true, _) => view.endpoint_addresses(service),
        (false, _) => {
            let owned = service.addresses.iter().filter(|a| view.owns(id, **a, number));
            owned.copied().collect()
        }
    };
    for address in addresses {
        let (chains, otherwise) = to_address(view, viewer, of, address);
        add_chains(view, rows, viewer, chains.iter().chain([&otherwise]));
        rows.insert(Arc::new(RowKey::AddressListener {
            address,
            port: number,
            http: port.protocol == Protocol::Unknown,
            service: id.clone(),
            chains,
            otherwise,
        }));
    }
    if service.shares_port(number) || !viewer.captures {
        // The listener is of all, the clusters are brought by each.
        let chains = of_shared(view, viewer, of);
        add_chains(view, rows, viewer, &chains);
        let shared = view.get(&PortView { viewer: viewer.clone(), port: number });
        rows.extend(shared.iter().cloned());
    }
}

fn add_chains<'a>(
    view: &View<'_>,
    rows: &mut RowSet,
    viewer: &Viewer,
    chains: impl IntoIterator<Item = &'a ChainKey>,
) {
    add_clusters(
        view,
        rows,
        viewer,
        chains.into_iter().flat_map(|chain| chain.clusters().cloned()),
    );
}

/// The address that a proxy opens a port on; none where connections to it are captured.
fn bind_address(view: &View<'_>, viewer: &Viewer, port: u16) -> Option<IpAddr> {
    let scope = viewer.scope.as_ref().and_then(|id| view.sidecar_scope(id));
    let egress = scope.as_ref().and_then(|scope| scope.egress.as_ref());
    let own = egress.into_iter().flatten().filter(|listener| listener.port == Some(port));
    let loopback = (!viewer.captures).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    own.filter_map(|listener| listener.bind).next().or(loopback)
}

/// Whether a viewer reaches anything by HTTP on a port.
fn any_http(view: &View<'_>, viewer: &Viewer, port: u16) -> bool {
    port == DEFAULT_PORT
        || view.any_http(port, |service| {
            viewer.client.sees(&view.visibility_of_service(service))
                && reaches(view, viewer, &service.namespace, &service.host, port)
        })
}

// === impl Viewer ===

impl Viewer {
    /// One that has what all others of its kind have.
    pub(crate) fn sharing(client: Client, mutual_tls: bool) -> Self {
        let labels = BTreeSet::new();
        Self { client, scope: None, labels, captures: true, near: None, mutual_tls }
    }
}

// === impl BaseView ===

impl Query for BaseView {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        if !self.0.captures {
            return RowSet::new();
        }
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
        let shared = shared(view, viewer, *port);
        // Whoever waits for HTTP would keep a server that speaks first waiting.
        let http = !shared.server_first || any_http(view, viewer, *port);
        let mut rows = RowSet::new();
        rows.insert(Arc::new(RowKey::BuiltIn(BuiltIn::of(policy))));
        rows.insert(Arc::new(RowKey::OutboundListener {
            bind: bind_address(view, viewer, *port),
            port: *port,
            policy,
            http,
            chains: shared.chains.clone(),
            otherwise: shared.otherwise.clone(),
        }));
        if !http {
            return rows;
        }
        let rules = winner(view, "*", viewer, |head| head.has_http);
        rows.insert(Arc::new(RowKey::RouteConfiguration {
            name: Arc::clone(&name),
            inline: None,
            servers: Vec::new(),
        }));
        let host = HostKey {
            route_config: name,
            domain: Arc::from("*"),
            names: HostNames::Domain,
            rules: bind(view, rules.as_ref(), viewer, *port),
            otherwise: Otherwise::Policy(policy),
            servers: Vec::new(),
        };
        add_host(view, &mut rows, viewer, host);
        rows
    }

    fn key(&self) -> Key {
        Key::PortView(self.clone())
    }
}

// === impl HostView ===

impl HostView {
    /// Ports of a host that only rules declare: those of a service whose pattern covers it.
    fn covered_ports(&self, view: &View<'_>) -> BTreeSet<u16> {
        let patterns = hosts::patterns_for(&self.host).into_iter().skip(1);
        let mut services = patterns.filter_map(|p| view.service(&p, &self.viewer.client));
        match services.next() {
            Some((_, service)) => {
                let http = service.ports.iter().filter(|p| p.protocol.is_http());
                http.map(|p| p.number).collect()
            }
            None => BTreeSet::from([DEFAULT_PORT]),
        }
    }
}

impl Query for HostView {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let Self { host, viewer } = self;
        let mut rows = RowSet::new();
        let named = view.service(host, &viewer.client);
        // Another name of a service means that service.
        let target = named.as_ref().and_then(|(_, s)| view.target_of(s, &viewer.client));
        let rules = winner(view, host, viewer, |head| head.has_http).or_else(|| {
            let (_, target) = target.as_ref()?;
            winner(view, &target.host, viewer, |head| head.has_http)
        });
        let meant = target.as_ref().map_or(host, |(_, target)| &target.host);
        let declared = view.ports_of(meant, &viewer.client);
        if target.is_none() {
            declared.iter().for_each(|of| add_listeners(view, &mut rows, viewer, of));
        }
        let mut ports: BTreeMap<u16, Option<&PortOf>> = BTreeMap::new();
        if let Some((_, row)) = &named {
            let http = declared.iter().filter(|of| of.port().0.protocol.is_http());
            let reached = http.filter(|p| reaches(view, viewer, &row.namespace, host, p.number()));
            ports.extend(reached.map(|of| (of.number(), Some(of))));
        } else if rules.is_some() && !view.is_alias(host) {
            ports.extend(self.covered_ports(view).into_iter().map(|port| (port, None)));
        }
        for (port, of) in ports {
            let (names, otherwise) = match (&named, of) {
                (Some((id, row)), Some(of)) => (
                    HostNames::Service {
                        id: if target.is_some() { id.clone() } else { of.id.clone() },
                        own: viewer.client.is_of(&row.namespace),
                        port,
                    },
                    Otherwise::Cluster(whole(view, &viewer.client, &of.id, &of.service, port)),
                ),
                _ => (HostNames::Domain, Otherwise::NotFound),
            };
            let key = HostKey {
                route_config: names::outbound_route_config(port),
                domain: Arc::clone(host),
                names,
                rules: bind(view, rules.as_ref(), viewer, port),
                otherwise,
                servers: Vec::new(),
            };
            if let Some((id, row)) = named.as_ref().filter(|(_, row)| row.headless) {
                let domain = Arc::from(format!("*.{host}"));
                let own = viewer.client.is_of(&row.namespace);
                let names = HostNames::Endpoints { id: id.clone(), own };
                add_host(view, &mut rows, viewer, HostKey { domain, names, ..key.clone() });
            }
            add_host(view, &mut rows, viewer, key);
            let shared = view.get(&PortView { viewer: viewer.clone(), port });
            rows.extend(shared.iter().cloned());
        }
        rows
    }

    fn key(&self) -> Key {
        Key::HostView(self.clone())
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

// === impl Imported ===

impl Query for Imported {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        let Some(scope) = view.sidecar_scope(&self.0) else { return found };
        let everything = [EgressListener {
            hosts: vec![HostPattern { scope: HostScope::Any, host: Arc::from("*") }],
            ..EgressListener::default()
        }];
        for listener in scope.egress.as_deref().unwrap_or(&everything) {
            for pattern in &listener.hosts {
                for (namespace, host) in view.declared(pattern) {
                    if lets_through(&scope, &namespace, &host) {
                        found.insert(host);
                    }
                }
            }
        }
        found
    }

    fn key(&self) -> Key {
        Key::Imported(self.clone())
    }
}
