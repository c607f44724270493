//! Endpoint sets, and whom their endpoints run as.
//!
//! In: the key of a cluster. Out: an `ir::Endpoints`.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::authentication::{Modes, PeerModes};
use super::cluster::part_labels;
use super::inbound::target;
use super::place::{AskedLabels, Near, asked, places};
use super::{ClusterKey, Key, Labels, selects};
use crate::ir::{EndpointAddress, EndpointChunk, Endpoints, Spot};
use crate::object::Origins;
use crate::rows::{Declared, Endpoint, Locality, Workload, account, takes_mutual_tls};
use crate::snapshot::RowId;
use crate::track::{Query, View};

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

/// Collects the endpoints of a chunk.
struct Found<'a> {
    view: &'a View<'a>,
    namespace: Arc<str>,
    /// Labels that the workloads must carry.
    labels: &'a Labels,
    peers: Arc<Modes>,
    asked: Arc<BTreeSet<Arc<str>>>,
    /// Nearly all endpoints share one with others.
    localities: BTreeMap<Runs, Arc<Locality>>,
    endpoints: Vec<EndpointAddress>,
    accounts: BTreeSet<Option<Arc<str>>>,
    /// Accounts of pods, by name alone.
    pods: BTreeSet<Arc<str>>,
}

/// Where an endpoint listens, and whether it is going away.
struct At {
    address: IpAddr,
    port: u16,
    draining: bool,
}

/// What is known of where an endpoint runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Runs {
    node: Option<Arc<str>>,
    /// As its slice tells.
    zone: Option<Arc<str>>,
}

/// What is known of who is behind an endpoint.
enum Behind<'a> {
    /// What its user says, and its labels.
    Declared(&'a Labels, &'a Declared),
    Pod(Arc<Workload>),
    Nobody,
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
    pub(super) fn add(&mut self, mutual_tls: bool, account: Option<Arc<str>>) {
        match mutual_tls {
            true => drop(self.accounts.insert(account)),
            false => self.others = true,
        }
    }

    pub(super) fn some(&self) -> bool {
        !self.accounts.is_empty()
    }

    pub(super) fn all(&self) -> bool {
        self.some() && !self.others
    }

    /// Their identities, sorted; none where one of them is not known.
    pub(super) fn identities(&self, trust_domain: &str) -> Vec<Arc<str>> {
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
        let mut found = Found::new(view, &slice.namespace, &self.labels);
        for endpoint in &slice.endpoints {
            let Some(&address) = endpoint.addresses.first() else { continue };
            if !endpoint.ready && !endpoint.draining {
                continue;
            }
            let behind = match &endpoint.declared {
                Some(declared) => Behind::Declared(&declared.labels, declared),
                None => match found.workload(endpoint) {
                    Some(workload) => Behind::Pod(workload),
                    None => Behind::Nobody,
                },
            };
            let at = At { address, port, draining: !endpoint.ready };
            let runs = Runs { node: endpoint.node.clone(), zone: endpoint.zone.clone() };
            found.add(at, &behind, runs);
        }
        Some(Arc::new(found.into_chunk()))
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
        let mut found = Found::new(view, &service.namespace, &self.labels);
        for workload in view.selected_workloads(&service) {
            let Some(&address) = workload.addresses.first() else { continue };
            let Some(port) = target(declared, Some(&workload)) else { continue };
            if !workload.ready {
                continue;
            }
            let runs = Runs { node: workload.node.clone(), zone: None };
            let behind = match &workload.declared {
                Some(declared) => Behind::Declared(&workload.labels, declared),
                None => Behind::Pod(Arc::clone(&workload)),
            };
            found.add(At { address, port, draining: false }, &behind, runs);
        }
        let chunk = found.into_chunk();
        (!chunk.endpoints.is_empty()).then(|| Arc::new(chunk))
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

// === impl Found ===

impl<'a> Found<'a> {
    fn new(view: &'a View<'a>, namespace: &Arc<str>, labels: &'a Labels) -> Self {
        Self {
            view,
            namespace: Arc::clone(namespace),
            labels,
            peers: view.get(&PeerModes(Arc::clone(namespace))),
            asked: view.get(&AskedLabels),
            localities: BTreeMap::new(),
            endpoints: Vec::new(),
            accounts: BTreeSet::new(),
            pods: BTreeSet::new(),
        }
    }

    /// The workload behind an endpoint.
    fn workload(&self, endpoint: &Endpoint) -> Option<Arc<Workload>> {
        let name = endpoint.workload.as_ref();
        let by_name = name.and_then(|name| self.view.workload(&self.namespace, name));
        let by_address = || endpoint.addresses.iter().find_map(|a| self.view.workload_at(*a));
        by_name.or_else(by_address)
    }

    /// Take an endpoint, if it carries the labels.
    fn add(&mut self, at: At, behind: &Behind<'_>, runs: Runs) {
        let none = Labels::new();
        let labels = match behind {
            Behind::Declared(labels, _) => labels,
            Behind::Pod(workload) => &workload.labels,
            Behind::Nobody => &none,
        };
        if !selects(self.labels, labels) {
            return;
        }
        let At { address, port, draining } = at;
        let has_proxy = match behind {
            Behind::Pod(pod) => takes_mutual_tls(labels) && pod.captured.contain(port),
            _ => takes_mutual_tls(labels),
        };
        let mutual_tls = has_proxy && self.peers.allow_mutual_tls(labels, port);
        match behind {
            Behind::Declared(_, own) if mutual_tls => {
                self.accounts.insert(own.account(&self.namespace));
            }
            Behind::Pod(pod) if mutual_tls => {
                self.pods.insert(Arc::clone(&pod.service_account));
            }
            _ => {}
        }
        let (locality, weight) = match behind {
            Behind::Declared(_, own) => (Arc::new(own.locality.clone()), own.weight),
            _ => (self.locality(runs), 1),
        };
        let asked = asked(&self.asked, labels);
        let labels = (!asked.is_empty()).then(|| Arc::new(asked));
        let endpoint =
            EndpointAddress { address, port, draining, locality, weight, mutual_tls, labels };
        self.endpoints.push(endpoint);
    }

    /// Where its node is, else the zone that its slice tells.
    fn locality(&mut self, runs: Runs) -> Arc<Locality> {
        let view = self.view;
        let locality = self.localities.entry(runs).or_insert_with_key(|Runs { node, zone }| {
            let node = node.as_ref().and_then(|name| view.node(name));
            let zone = || zone.clone().unwrap_or_default();
            let by_zone = || Locality { zone: zone(), ..Locality::default() };
            Arc::new(node.map_or_else(by_zone, |node| node.locality.clone()))
        });
        Arc::clone(locality)
    }

    fn into_chunk(self) -> EndpointChunk {
        let Self { mut endpoints, mut accounts, pods, namespace, .. } = self;
        merge(&mut endpoints);
        accounts.extend(pods.iter().map(|name| Some(account(&namespace, name))));
        EndpointChunk::new(endpoints, accounts)
    }
}

/// Sort, and keep each address once. Two that disagree: ready wins, as kube-proxy has it.
fn merge(endpoints: &mut Vec<EndpointAddress>) {
    // Ready sorts first.
    endpoints.sort();
    endpoints.dedup_by_key(|e| (e.address, e.port));
}

/// Build the endpoint set of a cluster.
pub(super) fn endpoints(view: &View<'_>, key: &ClusterKey, near: Option<&Near>) -> Endpoints {
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
        let mut weights: BTreeMap<Spot, u32> = BTreeMap::new();
        for endpoint in chunks.iter().flat_map(|chunk| &chunk.endpoints) {
            let sum = weights.entry(endpoint.spot()).or_default();
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
