//! Endpoint sets, and whom their endpoints run as.
//!
//! In: the key of a cluster. Out: an `ir::Endpoints`.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::authentication::PeerModes;
use super::cluster::part_labels;
use super::inbound::target;
use super::place::{AskedLabels, Near, asked, places};
use super::{ClusterKey, Key, Labels, selects};
use crate::ir::{EndpointAddress, EndpointChunk, Endpoints, Spot};
use crate::object::Origins;
use crate::rows::{Endpoint, Locality, Workload, account, takes_mutual_tls};
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
        let peers = view.get(&PeerModes(Arc::clone(&slice.namespace)));
        let keys = view.get(&AskedLabels);
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
                let of_workload =
                    || Some(account(&slice.namespace, &workload.as_ref()?.service_account));
                let known = declared.map_or_else(of_workload, |d| d.account(&slice.namespace));
                accounts.insert(known);
            }
            let weight = declared.map_or(1, |declared| declared.weight);
            let locality = locality(view, endpoint);
            out.push(EndpointAddress {
                address,
                port,
                draining: !endpoint.ready,
                locality,
                weight,
                mutual_tls,
                labels: tags(&keys, labels),
            });
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
        let keys = view.get(&AskedLabels);
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
            out.push(EndpointAddress {
                address,
                port,
                draining: false,
                locality,
                weight,
                mutual_tls,
                labels: tags(&keys, labels),
            });
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

/// Labels of an endpoint in which it matters whether it agrees with clients.
fn tags(keys: &BTreeSet<Arc<str>>, labels: &Labels) -> Option<Arc<Labels>> {
    let asked = asked(keys, labels);
    (!asked.is_empty()).then(|| Arc::new(asked))
}

/// The workload behind an endpoint.
fn workload(view: &View<'_>, namespace: &Arc<str>, endpoint: &Endpoint) -> Option<Arc<Workload>> {
    let by_name = endpoint.workload.as_ref().and_then(|n| view.workload(namespace, n));
    let by_address = || endpoint.addresses.iter().find_map(|a| view.workload_at(*a));
    by_name.or_else(by_address)
}
