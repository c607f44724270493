//! All objects of the mesh at one moment, as typed rows with the few indexes that queries need.
//!
//! In: `Change`s, each of which replaces every row that an object gave before. Out: rows, by id
//! and by index, in an order that does not depend on history.
//!
//! **Invariant:** equal sets of objects give equal snapshots, whatever came in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::object::{ObjectRef, Origin};
use crate::rows::{
    DestinationPolicy, EndpointSlice, Gateway, GatewayName, Mesh, Namespace, RouteRules, Service,
    Workload,
};

/// One row of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Settings of the mesh.
    Mesh(Mesh),
    /// A namespace.
    Namespace(Namespace),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// A workload.
    Workload(Workload),
    /// Rules for hosts.
    RouteRules(RouteRules),
    /// How to talk to a host.
    DestinationPolicy(Box<DestinationPolicy>),
    /// A gateway.
    Gateway(Gateway),
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The object.
    pub object: Arc<ObjectRef>,
    /// Position among its rows of this table.
    pub index: u32,
}

/// Rows of one type, with one index.
#[derive(Clone, Debug)]
pub struct Table<T: Indexed> {
    rows: BTreeMap<RowId, Arc<T>>,
    index: BTreeMap<T::Key, BTreeSet<RowId>>,
}

/// A row that can be found by what it says.
pub trait Indexed: Eq {
    /// What it is found by.
    type Key: Ord + Clone;
    /// All keys of this row.
    fn keys(&self) -> Vec<Self::Key>;
}

/// What a workload is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKey {
    /// Namespace and name.
    Name(Arc<str>, Arc<str>),
    /// An address.
    Address(IpAddr),
    /// Namespace, label key, label value.
    Label(Arc<str>, Arc<str>, Arc<str>),
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    objects: BTreeMap<Arc<ObjectRef>, Vec<Row>>,
    /// Settings of the mesh.
    pub meshes: Table<Mesh>,
    /// Namespaces, by name.
    pub namespaces: Table<Namespace>,
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
}

// === impl RowId ===

impl RowId {
    /// The place `field` of the row's object.
    pub fn origin(&self, field: impl Into<Arc<str>>) -> Origin {
        Origin::new(&self.object, field)
    }
}

// === impl Table ===

impl<T: Indexed> Default for Table<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), index: BTreeMap::new() }
    }
}

impl<T: Indexed> Table<T> {
    /// Every row, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RowId, &Arc<T>)> {
        self.rows.iter()
    }

    /// The row of this id.
    pub fn get(&self, id: &RowId) -> Option<&Arc<T>> {
        self.rows.get(id)
    }

    /// The row of this id, with the id as it is kept here.
    pub fn entry(&self, id: &RowId) -> Option<(&RowId, &Arc<T>)> {
        self.rows.get_key_value(id)
    }

    /// Rows with this key, in order.
    pub fn find<'a>(
        &'a self,
        key: &T::Key,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<T>)> + use<'a, T> {
        self.index.get(key).into_iter().flatten().filter_map(|id| self.rows.get_key_value(id))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn insert(&mut self, id: RowId, row: T) {
        for key in row.keys() {
            self.index.entry(key).or_default().insert(id.clone());
        }
        self.rows.insert(id, Arc::new(row));
    }

    fn remove(&mut self, id: &RowId) {
        let Some(row) = self.rows.remove(id) else { return };
        for key in row.keys() {
            if let Some(ids) = self.index.get_mut(&key) {
                ids.remove(id);
                if ids.is_empty() {
                    self.index.remove(&key);
                }
            }
        }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Apply changes in order; the last one for an object wins. Returns whether anything differs.
    pub fn apply(&mut self, batch: Vec<Change>) -> bool {
        let mut touched = false;
        for Change { owner, rows } in batch {
            if self.objects.get(&owner).is_some_and(|old| *old == rows)
                || (rows.is_empty() && !self.objects.contains_key(&owner))
            {
                continue;
            }
            touched = true;
            if let Some(old) = self.objects.remove(&owner) {
                self.each(&owner, old, false);
            }
            if !rows.is_empty() {
                self.each(&owner, rows.clone(), true);
                self.objects.insert(owner, rows);
            }
        }
        touched
    }

    /// Every object that gave a row, in order.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<ObjectRef>> {
        self.objects.keys()
    }

    fn each(&mut self, owner: &Arc<ObjectRef>, rows: Vec<Row>, insert: bool) {
        fn put<T: Indexed>(table: &mut Table<T>, id: RowId, row: T, insert: bool) {
            if insert {
                table.insert(id, row);
            } else {
                table.remove(&id);
            }
        }
        for (index, row) in (0..).zip(rows) {
            let id = RowId { object: Arc::clone(owner), index };
            match row {
                Row::Mesh(row) => put(&mut self.meshes, id, row, insert),
                Row::Namespace(row) => put(&mut self.namespaces, id, row, insert),
                Row::Service(row) => put(&mut self.services, id, row, insert),
                Row::EndpointSlice(row) => put(&mut self.slices, id, row, insert),
                Row::Workload(row) => put(&mut self.workloads, id, row, insert),
                Row::RouteRules(row) => put(&mut self.rules, id, row, insert),
                Row::DestinationPolicy(row) => put(&mut self.policies, id, *row, insert),
                Row::Gateway(row) => put(&mut self.gateways, id, row, insert),
            }
        }
    }
}

// === impl Indexed ===

impl Indexed for Mesh {
    type Key = ();
    fn keys(&self) -> Vec<()> {
        vec![()]
    }
}

impl Indexed for Namespace {
    type Key = Arc<str>;
    fn keys(&self) -> Vec<Self::Key> {
        vec![Arc::clone(&self.name)]
    }
}

impl Indexed for Service {
    type Key = Arc<str>;
    fn keys(&self) -> Vec<Self::Key> {
        vec![Arc::clone(&self.host)]
    }
}

impl Indexed for EndpointSlice {
    type Key = (Arc<str>, Arc<str>);
    fn keys(&self) -> Vec<Self::Key> {
        vec![(Arc::clone(&self.namespace), Arc::clone(&self.service))]
    }
}

impl Indexed for Workload {
    type Key = WorkloadKey;
    fn keys(&self) -> Vec<Self::Key> {
        let ns = || Arc::clone(&self.namespace);
        let mut keys = vec![WorkloadKey::Name(ns(), Arc::clone(&self.name))];
        keys.extend(self.addresses.iter().map(|a| WorkloadKey::Address(*a)));
        keys.extend(
            self.labels.iter().map(|(k, v)| WorkloadKey::Label(ns(), Arc::clone(k), Arc::clone(v))),
        );
        keys
    }
}

impl Indexed for RouteRules {
    type Key = GatewayName;
    fn keys(&self) -> Vec<Self::Key> {
        self.gateways.clone()
    }
}

impl Indexed for DestinationPolicy {
    type Key = Arc<str>;
    fn keys(&self) -> Vec<Self::Key> {
        vec![Arc::clone(&self.host)]
    }
}

impl Indexed for Gateway {
    type Key = (Arc<str>, Arc<str>);
    fn keys(&self) -> Vec<Self::Key> {
        vec![(Arc::clone(&self.namespace), Arc::clone(&self.name))]
    }
}
