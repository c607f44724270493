//! All objects of the mesh at one moment, as typed rows with the few indexes that queries need.
//!
//! In: `Change`s, each of which replaces every row that an object gave before. Out: rows, by id
//! and by index, in an order that does not depend on history.
//!
//! **Invariant:** equal sets of objects give equal snapshots, whatever came in between.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use crate::hosts;
use crate::object::{ObjectRef, Origin};
use crate::rows::{
    DestinationPolicy, EndpointSlice, Gateway, GatewayName, Mesh, Namespace, Node, PeerPolicy,
    RouteRules, Service, SidecarScope, Workload,
};

/// One row of any table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// Settings of the mesh.
    Mesh(Arc<Mesh>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A node.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// Endpoints of a service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A workload.
    Workload(Arc<Workload>),
    /// Rules for hosts.
    RouteRules(Arc<RouteRules>),
    /// How to talk to a host.
    DestinationPolicy(Arc<DestinationPolicy>),
    /// A gateway.
    Gateway(Arc<Gateway>),
    /// What sidecars may reach.
    SidecarScope(Arc<SidecarScope>),
    /// What workloads take.
    PeerPolicy(Arc<PeerPolicy>),
}

/// The rows that one object gives from now on; empty = the object is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub owner: Arc<ObjectRef>,
    /// Its rows, in an order that is a function of the object.
    pub rows: Vec<Row>,
}

/// Names a row: the object it came from, and which of its rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowId {
    /// The object.
    pub object: Arc<ObjectRef>,
    /// Position among its rows of this table.
    pub index: u32,
}

/// Rows of one type, with one index.
#[derive(Clone, Debug)]
pub struct Table<T: Indexed> {
    rows: HashMap<RowId, Arc<T>>,
    index: HashMap<IndexKey, Bucket>,
}

/// Rows of an index bucket. Most have one: each name, each address.
#[derive(Clone, Debug)]
enum Bucket {
    One(RowId),
    Many(BTreeSet<RowId>),
}

/// A row that can be found by what it says.
pub trait Indexed: Eq {
    /// All buckets that it is in.
    fn keys(&self) -> BTreeSet<IndexKey>;
}

/// A bucket of an index: rows are found by what they say. Selectors are indexed by their first
/// pair in both directions: a workload finds what selects it, a selector finds whom it selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IndexKey {
    /// Settings of the mesh.
    Mesh,
    /// A namespace by name.
    Namespace(Arc<str>),
    /// A node by name.
    Node(Arc<str>),
    /// Services of a host.
    ServiceHost(Arc<str>),
    /// Services of a namespace.
    ServiceIn(Arc<str>),
    /// Services that have an address.
    ServiceAddress(IpAddr),
    /// Services whose host lies below a pattern such as `*.svc.cluster.local`.
    ServiceBelow(Arc<str>),
    /// Services whose connections to a port come in where those to others do.
    SharedPort(u16),
    /// Services that have something on a port that is, or may be, no HTTP.
    StreamPort(u16),
    /// Services that have HTTP on a port, or may have.
    HttpPort(u16),
    /// Services of a namespace whose selector begins with a pair.
    ServiceSelects(Arc<str>, Arc<str>, Arc<str>),
    /// Slices of a service, by namespace and short name.
    Slice(Arc<str>, Arc<str>),
    /// A workload by namespace and name.
    WorkloadName(Arc<str>, Arc<str>),
    /// Workloads that have an address.
    WorkloadAddress(IpAddr),
    /// Workloads of a namespace that carry a label.
    WorkloadLabel(Arc<str>, Arc<str>, Arc<str>),
    /// Workloads of a namespace.
    WorkloadIn(Arc<str>),
    /// Workloads of a namespace that users registered.
    RegisteredIn(Arc<str>),
    /// Rules bound to a gateway, or to the mesh.
    RulesOf(GatewayName),
    /// Rules of a namespace that are bound to the mesh.
    MeshRulesIn(Arc<str>),
    /// Rules for the mesh with a condition on labels of the workload that asks.
    SourceLabels,
    /// Rules for the mesh that say something of TLS connections.
    TlsRules,
    /// Rules that claim a host for a gateway, or for the mesh.
    Claim(GatewayName, Arc<str>),
    /// Policies of a host or pattern.
    Policy(Arc<str>),
    /// Policies by which it may matter where a client runs.
    PlacePolicy,
    /// Gateways by namespace and name.
    Gateway(Arc<str>, Arc<str>),
    /// Gateways whose selector begins with a pair; none = it is empty.
    GatewaySelects(Option<(Arc<str>, Arc<str>)>),
    /// Sidecar scopes of a namespace.
    SidecarScopeIn(Arc<str>),
    /// Peer policies of a namespace.
    PeerPolicyIn(Arc<str>),
}

/// What differs after a batch.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Rows that are new, gone or other.
    pub rows: HashSet<RowId>,
    /// Buckets that gained or lost a row, and those of names whose row is another one.
    pub members: HashSet<IndexKey>,
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Domain of identities, where an authority says it: then it counts, whatever settings say.
    /// Never changes.
    pub trust_domain: Option<Arc<str>>,
    objects: BTreeMap<Arc<ObjectRef>, Vec<Row>>,
    /// Settings of the mesh.
    pub meshes: Table<Mesh>,
    /// Namespaces, by name.
    pub namespaces: Table<Namespace>,
    /// Nodes, by name.
    pub nodes: Table<Node>,
    /// Services, by host.
    pub services: Table<Service>,
    /// Endpoint slices, by namespace and short name of the service.
    pub slices: Table<EndpointSlice>,
    /// Workloads.
    pub workloads: Table<Workload>,
    /// Rules, by what they are bound to.
    pub rules: Table<RouteRules>,
    /// Policies, by host.
    pub policies: Table<DestinationPolicy>,
    /// Gateways, by namespace and name.
    pub gateways: Table<Gateway>,
    /// Sidecar scopes, by namespace.
    pub sidecar_scopes: Table<SidecarScope>,
    /// Peer policies, by namespace.
    pub peer_policies: Table<PeerPolicy>,
}

// === impl RowId ===

impl Hash for RowId {
    /// Hashes what nearly always tells rows apart, not everything that may.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.object.name.hash(state);
        self.index.hash(state);
    }
}

impl RowId {
    /// The place `field` of the row's object.
    pub fn origin(&self, field: impl Into<Arc<str>>) -> Origin {
        Origin::new(&self.object, field)
    }
}

// === impl IndexKey ===

impl IndexKey {
    /// Whether who looks into such a bucket wants the row behind a name: it differs when the
    /// content of that row does, so that one fact tells both.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::Node(_) | Self::WorkloadName(..) | Self::WorkloadAddress(_))
    }
}

// === impl Table ===

impl<T: Indexed> Default for Table<T> {
    fn default() -> Self {
        Self { rows: HashMap::default(), index: HashMap::default() }
    }
}

impl<T: Indexed> Table<T> {
    /// The row of this id, with the id as it is kept here.
    pub fn get(&self, id: &RowId) -> Option<(&RowId, &Arc<T>)> {
        self.rows.get_key_value(id)
    }

    /// Rows in a bucket, in order.
    pub fn find<'a>(
        &'a self,
        key: &IndexKey,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<T>)> + use<'a, T> {
        let ids = self.index.get(key).into_iter().flat_map(Bucket::ids);
        ids.filter_map(|id| self.rows.get_key_value(id))
    }

    /// Set or take away a row.
    fn replace(&mut self, id: &RowId, row: Option<Arc<T>>, facts: &mut Facts) {
        let old = self.rows.remove(id);
        let old_keys = old.as_ref().map(|r| r.keys()).unwrap_or_default();
        let new_keys = row.as_ref().map(|r| r.keys()).unwrap_or_default();
        if old != row {
            facts.rows.insert(id.clone());
            facts.members.extend(new_keys.iter().filter(|key| key.is_name()).cloned());
        }
        for key in old_keys.difference(&new_keys) {
            if self.index.get_mut(key).is_some_and(|bucket| bucket.remove(id)) {
                self.index.remove(key);
            }
            facts.members.insert(key.clone());
        }
        for key in new_keys.difference(&old_keys) {
            match self.index.get_mut(key) {
                Some(bucket) => bucket.insert(id.clone()),
                None => drop(self.index.insert(key.clone(), Bucket::One(id.clone()))),
            }
            facts.members.insert(key.clone());
        }
        if let Some(row) = row {
            self.rows.insert(id.clone(), row);
        }
    }
}

// === impl Bucket ===

impl Bucket {
    fn ids(&self) -> impl Iterator<Item = &RowId> {
        let (one, many) = match self {
            Self::One(id) => (Some(id), None),
            Self::Many(ids) => (None, Some(ids)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn insert(&mut self, id: RowId) {
        match self {
            Self::One(known) if *known == id => {}
            Self::One(known) => *self = Self::Many(BTreeSet::from([known.clone(), id])),
            Self::Many(ids) => drop(ids.insert(id)),
        }
    }

    /// Returns whether none is left.
    fn remove(&mut self, id: &RowId) -> bool {
        match self {
            Self::One(known) => known == id,
            Self::Many(ids) => {
                ids.remove(id);
                ids.is_empty()
            }
        }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Apply changes in order; the last one for an object wins. Returns what differs.
    pub fn apply(&mut self, batch: Vec<Change>) -> Facts {
        let mut facts = Facts::default();
        for Change { owner, rows } in batch {
            let old = self.objects.remove(&owner).unwrap_or_default();
            if old != rows {
                let count = old.len().max(rows.len());
                let (mut old_rows, mut new_rows) = (old.into_iter(), rows.iter().cloned());
                for index in 0..u32::try_from(count).unwrap_or(u32::MAX) {
                    let id = RowId { object: Arc::clone(&owner), index };
                    let (before, after) = (old_rows.next(), new_rows.next());
                    self.replace(&id, before, after, &mut facts);
                }
            }
            if !rows.is_empty() {
                self.objects.insert(owner, rows);
            }
        }
        facts
    }

    /// Hosts that sidecars may have: of services, and of rules for the mesh.
    pub(crate) fn outbound_hosts(&self) -> BTreeSet<Arc<str>> {
        let mesh = |rules: &RouteRules| rules.gateways.contains(&GatewayName::Mesh);
        let of_rules = self.rules.rows.values().filter(|r| mesh(r)).flat_map(|r| r.hosts.iter());
        let of_services = self.services.rows.values().map(|s| &s.host);
        of_services.chain(of_rules).filter(|host| &***host != "*").cloned().collect()
    }

    /// Whether something may be wrong with a row, beside what its own object says.
    pub(crate) fn is_linted(&self, id: &RowId) -> bool {
        self.rules.get(id).is_some()
            || self.policies.get(id).is_some()
            || self.services.get(id).is_some()
            || self.sidecar_scopes.get(id).is_some()
    }

    /// Whether a host is one of `outbound_hosts`.
    pub(crate) fn is_outbound_host(&self, host: &Arc<str>) -> bool {
        let claim = IndexKey::Claim(GatewayName::Mesh, Arc::clone(host));
        &**host != "*"
            && (self.services.index.contains_key(&IndexKey::ServiceHost(Arc::clone(host)))
                || self.rules.index.contains_key(&claim))
    }

    /// The changes that make this snapshot out of an empty one.
    pub fn changes(&self) -> Vec<Change> {
        let change = |(owner, rows): (&Arc<ObjectRef>, &Vec<Row>)| Change {
            owner: Arc::clone(owner),
            rows: rows.clone(),
        };
        self.objects.iter().map(change).collect()
    }

    /// Replace one row; when it moves to another table it leaves the old one first.
    fn replace(&mut self, id: &RowId, old: Option<Row>, new: Option<Row>, facts: &mut Facts) {
        if let (Some(before), Some(after)) = (&old, &new)
            && std::mem::discriminant(before) != std::mem::discriminant(after)
        {
            self.replace(id, old, None, facts);
            return self.replace(id, None, new, facts);
        }
        let Some(sample) = new.as_ref().or(old.as_ref()) else { return };
        match sample {
            Row::Mesh(_) => self.meshes.replace(id, new.and_then(Row::mesh), facts),
            Row::Namespace(_) => self.namespaces.replace(id, new.and_then(Row::namespace), facts),
            Row::Node(_) => self.nodes.replace(id, new.and_then(Row::node), facts),
            Row::Service(_) => self.services.replace(id, new.and_then(Row::service), facts),
            Row::EndpointSlice(_) => self.slices.replace(id, new.and_then(Row::slice), facts),
            Row::Workload(_) => self.workloads.replace(id, new.and_then(Row::workload), facts),
            Row::RouteRules(_) => self.rules.replace(id, new.and_then(Row::rules), facts),
            Row::DestinationPolicy(_) => {
                self.policies.replace(id, new.and_then(Row::policy), facts)
            }
            Row::Gateway(_) => self.gateways.replace(id, new.and_then(Row::gateway), facts),
            Row::SidecarScope(_) => {
                self.sidecar_scopes.replace(id, new.and_then(Row::sidecar_scope), facts)
            }
            Row::PeerPolicy(_) => {
                self.peer_policies.replace(id, new.and_then(Row::peer_policy), facts)
            }
        }
    }
}

// === impl Row ===

impl Row {
    fn mesh(self) -> Option<Arc<Mesh>> {
        if let Self::Mesh(row) = self { Some(row) } else { None }
    }

    fn namespace(self) -> Option<Arc<Namespace>> {
        if let Self::Namespace(row) = self { Some(row) } else { None }
    }

    fn node(self) -> Option<Arc<Node>> {
        if let Self::Node(row) = self { Some(row) } else { None }
    }

    fn service(self) -> Option<Arc<Service>> {
        if let Self::Service(row) = self { Some(row) } else { None }
    }

    fn slice(self) -> Option<Arc<EndpointSlice>> {
        if let Self::EndpointSlice(row) = self { Some(row) } else { None }
    }

    fn workload(self) -> Option<Arc<Workload>> {
        if let Self::Workload(row) = self { Some(row) } else { None }
    }

    fn rules(self) -> Option<Arc<RouteRules>> {
        if let Self::RouteRules(row) = self { Some(row) } else { None }
    }

    fn policy(self) -> Option<Arc<DestinationPolicy>> {
        if let Self::DestinationPolicy(row) = self { Some(row) } else { None }
    }

    fn gateway(self) -> Option<Arc<Gateway>> {
        if let Self::Gateway(row) = self { Some(row) } else { None }
    }

    fn sidecar_scope(self) -> Option<Arc<SidecarScope>> {
        if let Self::SidecarScope(row) = self { Some(row) } else { None }
    }

    fn peer_policy(self) -> Option<Arc<PeerPolicy>> {
        if let Self::PeerPolicy(row) = self { Some(row) } else { None }
    }
}

// === impl Indexed ===

impl Indexed for Mesh {
    fn keys(&self) -> BTreeSet<IndexKey> {
        BTreeSet::from([IndexKey::Mesh])
    }
}

impl Indexed for Namespace {
    fn keys(&self) -> BTreeSet<IndexKey> {
        BTreeSet::from([IndexKey::Namespace(Arc::clone(&self.name))])
    }
}

impl Indexed for Node {
    fn keys(&self) -> BTreeSet<IndexKey> {
        BTreeSet::from([IndexKey::Node(Arc::clone(&self.name))])
    }
}

impl Indexed for SidecarScope {
    fn keys(&self) -> BTreeSet<IndexKey> {
        BTreeSet::from([IndexKey::SidecarScopeIn(Arc::clone(&self.namespace))])
    }
}

impl Indexed for PeerPolicy {
    fn keys(&self) -> BTreeSet<IndexKey> {
        BTreeSet::from([IndexKey::PeerPolicyIn(Arc::clone(&self.namespace))])
    }
}

impl Indexed for Service {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let mut patterns = hosts::patterns_for(&self.host).into_iter();
        let mut keys: BTreeSet<_> =
            patterns.next().map(IndexKey::ServiceHost).into_iter().collect();
        keys.extend(patterns.map(IndexKey::ServiceBelow));
        keys.insert(IndexKey::ServiceIn(Arc::clone(&self.namespace)));
        keys.extend(self.addresses.iter().map(|address| IndexKey::ServiceAddress(*address)));
        for port in &self.ports {
            if port.protocol.is_http() {
                keys.insert(IndexKey::HttpPort(port.number));
            }
            if port.protocol.is_stream() {
                keys.insert(IndexKey::StreamPort(port.number));
            }
            if self.shares_port(port.number) {
                keys.insert(IndexKey::SharedPort(port.number));
            }
        }
        if let Some((key, value)) = self.selector.iter().next() {
            let namespace = Arc::clone(&self.namespace);
            keys.insert(IndexKey::ServiceSelects(namespace, Arc::clone(key), Arc::clone(value)));
        }
        keys
    }
}

impl Indexed for EndpointSlice {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let service = Arc::clone(&self.service);
        BTreeSet::from([IndexKey::Slice(Arc::clone(&self.namespace), service)])
    }
}

impl Indexed for Workload {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let ns = || Arc::clone(&self.namespace);
        let labels = self.labels.iter();
        let mut keys: BTreeSet<_> = labels
            .map(|(k, v)| IndexKey::WorkloadLabel(ns(), Arc::clone(k), Arc::clone(v)))
            .collect();
        if self.declared.is_some() {
            keys.insert(IndexKey::RegisteredIn(ns()));
        }
        keys.insert(IndexKey::WorkloadIn(ns()));
        keys.insert(IndexKey::WorkloadName(ns(), Arc::clone(&self.name)));
        keys.extend(self.addresses.iter().map(|a| IndexKey::WorkloadAddress(*a)));
        keys
    }
}

impl Indexed for RouteRules {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let mut keys = BTreeSet::new();
        for gateway in &self.gateways {
            keys.insert(IndexKey::RulesOf(gateway.clone()));
            if *gateway == GatewayName::Mesh {
                keys.insert(IndexKey::MeshRulesIn(Arc::clone(&self.namespace)));
                if self.sources().any(|source| !source.labels.is_empty()) {
                    keys.insert(IndexKey::SourceLabels);
                }
                if !self.tls.is_empty() {
                    keys.insert(IndexKey::TlsRules);
                }
            }
            let claim = |host: &Arc<str>| IndexKey::Claim(gateway.clone(), Arc::clone(host));
            keys.extend(self.hosts.iter().map(claim));
        }
        keys
    }
}

impl Indexed for DestinationPolicy {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let places = self.may_prefer_places().then_some(IndexKey::PlacePolicy);
        places.into_iter().chain([IndexKey::Policy(Arc::clone(&self.host))]).collect()
    }
}

impl Indexed for Gateway {
    fn keys(&self) -> BTreeSet<IndexKey> {
        let first = self.selector.iter().next();
        let first = first.map(|(k, v)| (Arc::clone(k), Arc::clone(v)));
        let name = IndexKey::Gateway(Arc::clone(&self.namespace), Arc::clone(&self.name));
        BTreeSet::from([name, IndexKey::GatewaySelects(first)])
    }
}
