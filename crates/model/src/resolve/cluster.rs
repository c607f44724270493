//! Clusters and their endpoint sets.
//!
//! In: the key of a cluster. Out: an `ir::Cluster`, an `ir::Endpoints`.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::authentication::PeerModes;
use super::client::Client;
use super::destination::PolicyChain;
use super::inbound::target;
use super::place::{distributes, places};
use super::{BuiltIn, ClusterKey, Key, Labels, Part, selects};
use crate::ir::{
    Cluster, ClusterEndpoints, EndpointAddress, EndpointChunk, Endpoints, HttpVersion, MeshTls,
    NamedEndpoint, UpstreamTls,
};
use crate::names;
use crate::object::Origins;
use crate::rows::{
    ClientTls, ConnectionPool, Declared, Endpoint, HashKey, HttpAction, HttpPool, LbAlgorithm,
    Locality, Protocol, Resolution, Service, Subset, TcpPool, TrafficPolicy, UpgradePolicy,
    Workload, account, takes_mutual_tls,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Build a cluster.
pub(super) fn cluster(view: &View<'_>, key: &ClusterKey, mutual_tls: bool) -> Cluster {
    let service = key.service.as_ref().and_then(|(id, port)| {
        let service = view.service_by_id(id)?;
        let index = service.ports.iter().position(|p| p.number == *port)?;
        Some((id, service, index))
    });
    let mut origins = Origins::default();
    if let Some((id, _, index)) = &service {
        origins.push(id.origin(format!("spec.ports[{index}]")));
    }
    if let Some((id, rule, position)) = &key.asked_by
        && let Some(rules) = view.rules(id)
        && let Some(HttpAction::Forward(forward)) = rules.http.get(*rule).map(|r| &r.action)
        && let Some(destination) = forward.destinations.get(*position)
    {
        origins.push(id.origin(format!("{}.destination", destination.field)));
    }
    let policy = effective_policy(view, key, &mut origins);
    let distributes = key.has_endpoints && distributes(view, &policy);
    let TrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, ports: _ } = policy;
    let pool = connection_pool.unwrap_or_default();
    let load_balancer = load_balancer.map_or(LbAlgorithm::LeastRequest, |lb| lb.algorithm);
    let protocol = service.as_ref().map(|(_, s, index)| s.ports[*index].protocol);
    let http_version = match (pool.http.upgrade, protocol) {
        _ if pool.http.use_client_protocol => HttpVersion::AsClient,
        (Some(UpgradePolicy::Upgrade), _) | (_, Some(Protocol::Http2)) => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    let mut accounts = Carriers::default();
    let endpoints = match &service {
        None => ClusterEndpoints::None,
        Some((id, service, index)) => {
            let port = service.ports[*index].number;
            match service.resolution {
                _ if key.has_endpoints => {
                    accounts = (*view.get(&Accounts { service: (*id).clone(), port })).clone();
                    ClusterEndpoints::Discovered
                }
                Resolution::Dns | Resolution::DnsRoundRobin => {
                    let mut names = named(view, key, service, *index, &mut accounts);
                    match service.resolution {
                        _ if names.is_empty() => ClusterEndpoints::None,
                        Resolution::DnsRoundRobin => ClusterEndpoints::NamedOnce(names.remove(0)),
                        _ => ClusterEndpoints::Named(names),
                    }
                }
                Resolution::Endpoints => {
                    accounts = (*view.get(&Accounts { service: (*id).clone(), port })).clone();
                    ClusterEndpoints::Original
                }
                Resolution::Original => ClusterEndpoints::Original,
            }
        }
    };
    let mesh_tls = |sni: Option<Arc<str>>, names: Vec<Arc<str>>| {
        let trust_domain = Arc::clone(&view.mesh().trust_domain);
        let names = if names.is_empty() { accounts.identities(&trust_domain) } else { names };
        let sni = sni.unwrap_or_else(|| names::server_name(&key.name));
        MeshTls { sni, names, trust_domain, protocol: protocol.unwrap_or(Protocol::Unknown) }
    };
    let (tls, endpoints) = match tls {
        Some(ClientTls::Disable) => (UpstreamTls::Plain, endpoints),
        Some(ClientTls::Origin(origin)) => (UpstreamTls::Origin(origin), endpoints),
        Some(ClientTls::Mesh { sni, names }) if mutual_tls => {
            (UpstreamTls::Always(mesh_tls(sni, names)), endpoints)
        }
        // Plain text is not what was asked for.
        Some(ClientTls::Mesh { .. } | ClientTls::Refused) => {
            (UpstreamTls::Plain, ClusterEndpoints::None)
        }
        None if mutual_tls && view.mesh().auto_mtls => {
            let tls = match &endpoints {
                ClusterEndpoints::Discovered => UpstreamTls::WhereTaken(mesh_tls(None, vec![])),
                ClusterEndpoints::Named(_) | ClusterEndpoints::NamedOnce(_) if accounts.some() => {
                    UpstreamTls::WhereTaken(mesh_tls(None, vec![]))
                }
                // Which endpoint it is, is known when the connection is made.
                ClusterEndpoints::Original if accounts.all() => {
                    UpstreamTls::Always(mesh_tls(None, vec![]))
                }
                _ => UpstreamTls::Plain,
            };
            (tls, endpoints)
        }
        None => (UpstreamTls::Plain, endpoints),
    };
    Cluster {
        name: Arc::clone(&key.name),
        load_balancer: match endpoints {
            ClusterEndpoints::Original => LbAlgorithm::Passthrough,
            _ if load_balancer == LbAlgorithm::Passthrough => LbAlgorithm::LeastRequest,
            _ => load_balancer,
        },
        endpoints,
        http_version,
        distributes,
        pinned: key.has_endpoints && service.as_ref().is_some_and(|(_, s, _)| s.headless),
        tls,
        connect_timeout: connect_timeout(view, &pool),
        pool: limits(pool),
        outlier_detection,
        origins,
    }
}

/// Time to open a connection: what limits say, else what the mesh has.
pub(super) fn connect_timeout(view: &View<'_>, pool: &ConnectionPool) -> Duration {
    pool.tcp.connect_timeout.unwrap_or_else(|| view.mesh().connect_timeout)
}

/// Limits without what has been applied elsewhere.
pub(super) fn limits(pool: ConnectionPool) -> ConnectionPool {
    let ConnectionPool { tcp, http } = pool;
    ConnectionPool {
        tcp: TcpPool { connect_timeout: None, ..tcp },
        http: HttpPool { upgrade: None, use_client_protocol: false, ..http },
    }
}

/// Endpoints of a service port that are looked up in DNS, sorted.
fn named(
    view: &View<'_>,
    key: &ClusterKey,
    service: &Service,
    at: usize,
    accounts: &mut Carriers,
) -> Vec<NamedEndpoint> {
    let (port, labels) = (&service.ports[at].name, part_labels(view, key));
    let mut out = BTreeSet::new();
    let mut add = |declared: &Declared, addresses: &[IpAddr], port| {
        let address = || addresses.first().map(|a| Arc::from(a.to_string()));
        if selects(&labels, &declared.labels)
            && let Some(host) = declared.dns_name.clone().or_else(address)
        {
            let (locality, weight) = (declared.locality.clone(), declared.weight);
            let mutual_tls = takes_mutual_tls(&declared.labels);
            accounts.add(mutual_tls, declared.account(&service.namespace));
            out.insert(NamedEndpoint { host, port, locality, weight, mutual_tls });
        }
    };
    for slice in view.slices(service).into_iter().filter_map(|id| view.slice(&id)) {
        let Some(slice_port) = slice.ports.iter().find(|p| p.name == *port) else { continue };
        for endpoint in &slice.endpoints {
            if let Some(declared) = &endpoint.declared {
                add(declared, &endpoint.addresses, slice_port.number);
            }
        }
    }
    for workload in view.selected_workloads(service) {
        if let Some(declared) = &workload.declared
            && let Some(number) = target(&service.ports[at], Some(&workload))
        {
            add(declared, &workload.addresses, number);
        }
    }
    out.into_iter().collect()
}

/// The policy of a service's port for clients of its own namespace.
pub(super) fn policy_at_home(
    view: &View<'_>,
    service: &Service,
    port: u16,
    origins: &mut Origins,
) -> TrafficPolicy {
    let namespace = Arc::clone(&service.namespace);
    let client = Client::Namespace(Arc::clone(&namespace));
    let host = Arc::clone(&service.host);
    let chain = view.get(&PolicyChain { client, namespace, host });
    let Some(id) = chain.first() else { return TrafficPolicy::default() };
    let Some(row) = view.policy(id) else { return TrafficPolicy::default() };
    origins.push(id.origin(Arc::clone(&row.field)));
    row.policy.of_port(port)
}

/// What decides the endpoint of a cluster that chooses it by a hash.
pub(super) fn hash_key(view: &View<'_>, key: &ClusterKey) -> Option<HashKey> {
    if key.policies.is_empty() {
        return None;
    }
    effective_policy(view, key, &mut Origins::default()).load_balancer?.hash
}

/// The policy of the whole service with the subset's own parts laid over it.
pub(super) fn effective_policy(
    view: &View<'_>,
    key: &ClusterKey,
    origins: &mut Origins,
) -> TrafficPolicy {
    let subset = subset(view, key);
    if let (Some(Part::Defined { policy, .. }), Some(subset)) = (&key.part, &subset) {
        origins.push(policy.origin(Arc::clone(&subset.field)));
    }
    let mut policy = TrafficPolicy::default();
    if let Some(id) = key.policies.first()
        && let Some(row) = view.policy(id)
    {
        policy = row.policy.clone();
        if policy != TrafficPolicy::default() {
            origins.push(id.origin(Arc::clone(&row.field)));
        }
    }
    let port = key.service.as_ref().map(|(_, port)| *port).unwrap_or_default();
    match subset {
        Some(subset) => policy.of_part(&subset.policy, port),
        None => policy.of_port(port),
    }
}

/// The subset that a policy defines for this cluster.
fn subset(view: &View<'_>, key: &ClusterKey) -> Option<Subset> {
    let Some(Part::Defined { policy, subset }) = &key.part else { return None };
    view.policy(policy)?.subsets.iter().find(|s| s.name == *subset).cloned()
}

/// The endpoints that one slice gives to a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chunk {
    slice: RowId,
    /// Name of the service port.
    port: Arc<str>,
    /// Labels that the workloads must carry.
    labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// The endpoints that the selector of a service gives to one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Selected {
    service: RowId,
    /// Number of the service port.
    port: u16,
    /// Labels that the workloads must carry besides.
    labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// Whom the endpoints of a service run as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Accounts {
    pub(crate) service: RowId,
    /// Number of the service port.
    pub(crate) port: u16,
}

/// Endpoints that take mutual TLS, as the value of `Accounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carriers {
    /// Whom they run as; none = nobody said.
    accounts: BTreeSet<Option<Arc<str>>>,
    /// Whether there are others.
    others: bool,
}

// === impl Accounts ===

impl Query for Accounts {
    type Value = Carriers;

    fn run(&self, view: &View<'_>) -> Carriers {
        let mut out = Carriers::default();
        let (id, port) = (&self.service, self.port);
        for chunk in chunks(view, id, port, &Labels::new(), &mut Origins::default()) {
            out.accounts.extend(chunk.accounts.iter().cloned());
            out.others |= chunk.endpoints.iter().any(|endpoint| !endpoint.mutual_tls);
        }
        out
    }

    fn key(&self) -> Key {
        Key::Accounts(self.clone())
    }
}

// === impl Carriers ===

impl Carriers {
    fn add(&mut self, mutual_tls: bool, account: Option<Arc<str>>) {
        match mutual_tls {
            true => drop(self.accounts.insert(account)),
            false => self.others = true,
        }
    }

    fn some(&self) -> bool {
        !self.accounts.is_empty()
    }

    fn all(&self) -> bool {
        self.some() && !self.others
    }

    /// Their identities, sorted; none where one of them is not known.
    fn identities(&self, trust_domain: &str) -> Vec<Arc<str>> {
        let known: Option<Vec<_>> = self.accounts.iter().cloned().collect();
        let id = |account: Arc<str>| Arc::from(format!("spiffe://{trust_domain}/{account}"));
        known.unwrap_or_default().into_iter().map(id).collect()
    }
}

// === impl Chunk ===

impl Query for Chunk {
    /// None when the slice does not serve the port.
    type Value = Option<Arc<EndpointChunk>>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let slice = view.slice(&self.slice)?;
        let port = slice.ports.iter().find(|p| p.name == self.port)?.number;
        let peers = view.get(&PeerModes(Arc::clone(&slice.namespace)));
        let (mut out, mut accounts) = (Vec::new(), BTreeSet::new());
        for endpoint in &slice.endpoints {
            let Some(&address) = endpoint.addresses.first() else { continue };
            if !endpoint.ready && !endpoint.draining {
                continue;
            }
            let declared = endpoint.declared.as_ref();
            let workload = match declared {
                Some(_) => None,
                None => workload(view, &slice.namespace, endpoint),
            };
            let none = Labels::new();
            let labels = match (declared, &workload) {
                (Some(declared), _) => &declared.labels,
                (None, Some(workload)) => &workload.labels,
                (None, None) => &none,
            };
            if !selects(&self.labels, labels) {
                continue;
            }
            let mutual_tls = takes_mutual_tls(labels) && peers.allow_mutual_tls(labels, port);
            if mutual_tls {
                let of_workload = || Some(account(&slice.namespace, &workload?.service_account));
                let known = declared.map_or_else(of_workload, |d| d.account(&slice.namespace));
                accounts.insert(known);
            }
            let weight = declared.map_or(1, |declared| declared.weight);
            let locality = locality(view, endpoint);
            let draining = !endpoint.ready;
            out.push(EndpointAddress { address, port, draining, locality, weight, mutual_tls });
        }
        merge(&mut out);
        Some(Arc::new(EndpointChunk::new(out, accounts)))
    }

    fn key(&self) -> Key {
        Key::Chunk(self.clone())
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for port {:?}", self.slice.object, self.port)?;
        if !self.labels.is_empty() {
            write!(f, " labelled {:?}", self.labels)?;
        }
        Ok(())
    }
}

// === impl Selected ===

impl Query for Selected {
    type Value = Option<Arc<EndpointChunk>>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let service = view.service_by_id(&self.service)?;
        let declared = service.ports.iter().find(|p| p.number == self.port)?;
        let peers = view.get(&PeerModes(Arc::clone(&service.namespace)));
        let (mut out, mut accounts) = (Vec::new(), BTreeSet::new());
        for workload in view.selected_workloads(&service) {
            let Some(&address) = workload.addresses.first() else { continue };
            let Some(port) = target(declared, Some(&workload)) else { continue };
            if !workload.ready || !selects(&self.labels, &workload.labels) {
                continue;
            }
            let node = workload.node.as_ref().and_then(|name| view.node(name));
            let (locality, weight) = match (&workload.declared, node) {
                (Some(own), _) => (own.locality.clone(), own.weight),
                (None, Some(node)) => (node.locality.clone(), 1),
                (None, None) => (Locality::default(), 1),
            };
            let locality = Arc::new(locality);
            let labels = &workload.labels;
            let mutual_tls = takes_mutual_tls(labels) && peers.allow_mutual_tls(labels, port);
            if mutual_tls {
                accounts.insert(match &workload.declared {
                    Some(declared) => declared.account(&workload.namespace),
                    None => Some(account(&workload.namespace, &workload.service_account)),
                });
            }
            let draining = false;
            out.push(EndpointAddress { address, port, draining, locality, weight, mutual_tls });
        }
        merge(&mut out);
        (!out.is_empty()).then(|| Arc::new(EndpointChunk::new(out, accounts)))
    }

    fn key(&self) -> Key {
        Key::Selected(self.clone())
    }
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workloads of {} for port {}", self.service.object, self.port)
    }
}

/// Sort, and keep each address once. Two that disagree: ready wins, as kube-proxy has it.
fn merge(endpoints: &mut Vec<EndpointAddress>) {
    // Ready sorts first.
    endpoints.sort();
    endpoints.dedup_by_key(|e| (e.address, e.port));
}

/// Where an endpoint runs: where its node is, else the zone that its slice tells.
fn locality(view: &View<'_>, endpoint: &Endpoint) -> Arc<Locality> {
    if let Some(declared) = &endpoint.declared {
        return Arc::new(declared.locality.clone());
    }
    match (endpoint.node.as_ref().and_then(|name| view.node(name)), &endpoint.zone) {
        (Some(node), _) => Arc::new(node.locality.clone()),
        (None, Some(zone)) => Arc::new(Locality { zone: Arc::clone(zone), ..Locality::default() }),
        (None, None) => Arc::default(),
    }
}

/// A cluster that no service stands behind.
pub(super) fn built_in(view: &View<'_>, which: BuiltIn) -> Cluster {
    let (endpoints, http_version, load_balancer) = match which {
        BuiltIn::Passthrough => {
            (ClusterEndpoints::Original, HttpVersion::AsClient, LbAlgorithm::Passthrough)
        }
        BuiltIn::InboundPassthrough => (
            ClusterEndpoints::Local { port: None },
            HttpVersion::AsClient,
            LbAlgorithm::Passthrough,
        ),
        BuiltIn::BlackHole => {
            (ClusterEndpoints::None, HttpVersion::Http1, LbAlgorithm::LeastRequest)
        }
    };
    Cluster {
        name: which.name(),
        endpoints,
        http_version,
        load_balancer,
        distributes: false,
        pinned: false,
        tls: UpstreamTls::Plain,
        connect_timeout: view.mesh().connect_timeout,
        pool: ConnectionPool::default(),
        outlier_detection: None,
        origins: Origins::default(),
    }
}

/// Labels that the workloads of a cluster must carry.
fn part_labels(view: &View<'_>, key: &ClusterKey) -> BTreeMap<Arc<str>, Arc<str>> {
    match &key.part {
        None => BTreeMap::new(),
        Some(Part::Derived(labels)) => labels.clone(),
        Some(Part::Defined { .. }) => subset(view, key).map(|s| s.labels).unwrap_or_default(),
    }
}

/// Build the endpoint set of a cluster.
pub(super) fn endpoints(view: &View<'_>, key: &ClusterKey, near: Option<&Locality>) -> Endpoints {
    let labels = part_labels(view, key);
    let mut origins = Origins::default();
    let chunks = match &key.service {
        Some((id, port)) => {
            origins.push(id.origin(""));
            distinct(chunks(view, id, *port, &labels, &mut origins))
        }
        None => Vec::new(),
    };
    let places = near.and_then(|near| {
        let mut weights: BTreeMap<Locality, u32> = BTreeMap::new();
        for endpoint in chunks.iter().flat_map(|chunk| &chunk.endpoints) {
            let sum = weights.entry((*endpoint.locality).clone()).or_default();
            *sum = sum.saturating_add(endpoint.weight);
        }
        places(view, key, near, &weights)
    });
    Endpoints { cluster: Arc::clone(&key.name), chunks, places, origins }
}

/// What slices and the selector of a service give to one of its ports.
fn chunks(
    view: &View<'_>,
    id: &RowId,
    port: u16,
    labels: &Labels,
    origins: &mut Origins,
) -> Vec<Arc<EndpointChunk>> {
    let mut chunks = Vec::new();
    let Some(service) = view.service_by_id(id) else { return chunks };
    let Some(port) = service.ports.iter().find(|p| p.number == port) else { return chunks };
    for slice in view.slices(&service) {
        let name = Arc::clone(&port.name);
        let chunk = Chunk { slice: slice.clone(), port: name, labels: labels.clone() };
        if let Some(chunk) = &*view.get(&chunk) {
            origins.push(slice.origin(""));
            chunks.push(Arc::clone(chunk));
        }
    }
    if view.may_select(&service) {
        let (service, labels) = (id.clone(), labels.clone());
        chunks.extend((*view.get(&Selected { service, port: port.number, labels })).clone());
    }
    chunks
}

/// Chunks as they are, or, while slices name an endpoint twice, all in one.
fn distinct(chunks: Vec<Arc<EndpointChunk>>) -> Vec<Arc<EndpointChunk>> {
    if chunks.len() < 2 {
        return chunks;
    }
    let all = || chunks.iter().flat_map(|chunk| chunk.endpoints.iter());
    let mut addresses: Vec<_> = all().map(|e| (e.address, e.port)).collect();
    // Stable, because it is fast on runs that are sorted already.
    addresses.sort();
    if addresses.windows(2).all(|pair| pair[0] != pair[1]) {
        return chunks;
    }
    let mut endpoints = all().cloned().collect();
    merge(&mut endpoints);
    let accounts = chunks.iter().flat_map(|chunk| chunk.accounts.iter().cloned()).collect();
    vec![Arc::new(EndpointChunk::new(endpoints, accounts))]
}

/// The workload behind an endpoint.
fn workload(view: &View<'_>, namespace: &Arc<str>, endpoint: &Endpoint) -> Option<Arc<Workload>> {
    let by_name = endpoint.workload.as_ref().and_then(|n| view.workload(namespace, n));
    let by_address = || endpoint.addresses.iter().find_map(|a| view.workload_at(*a));
    by_name.or_else(by_address)
}
