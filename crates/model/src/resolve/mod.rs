//! What applies to whom: pure queries over the snapshot.
//!
//! In: a `View`. Out: for each group of proxies the rows it is to have, under keys that name
//! outcomes, so that groups which resolve alike share them.
//!
//! **Invariant:** queries see the snapshot only through the `View`; none reads a proxy but
//! `group`.

mod cluster;
mod destination;
mod group;
mod lint;
mod router;
mod virtual_host;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::ir;
use crate::rows::{
    DestinationPolicy, EndpointSlice, Gateway, GatewayName, Mesh, RouteRules, Service, Workload,
};
use crate::snapshot::{RowId, Snapshot, WorkloadKey};

pub(crate) use group::{Group, group};
pub(crate) use lint::lint;
pub(crate) use router::router;

/// Names a row by the outcome that makes it: groups with the same outcome share the row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A gateway port.
    Listener {
        /// Address; none = all.
        bind: Option<IpAddr>,
        /// Port.
        port: u16,
        /// Gateways with a server there, in order.
        gateways: Vec<RowId>,
    },
    /// The routes of a port.
    RouteConfiguration {
        /// Name on the wire.
        name: Arc<str>,
        /// Keys of the virtual hosts within it; none = they are discovered one by one.
        inline: Option<Vec<RowKey>>,
    },
    /// The routes of a host.
    VirtualHost {
        /// RouteConfiguration.
        route_config: Arc<str>,
        /// Domain.
        domain: Arc<str>,
        /// The rule lists that won, in order, each with the gateway ports through which it came.
        rules: Vec<(RowId, BTreeSet<u16>)>,
        /// Clusters that the rules' destinations came to, in order of appearance.
        clusters: Vec<Arc<str>>,
    },
    /// A destination.
    Cluster(ClusterKey),
    /// Its endpoints.
    Endpoints(ClusterKey),
}

/// Names a cluster by the outcome that makes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// Name on the wire.
    pub name: Arc<str>,
    /// The service; none = there is no such host or port.
    pub service: Option<RowId>,
    /// The policies that won, in order.
    pub policies: Vec<RowId>,
    /// Labels that its endpoints must carry.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// Rows of one group, being built.
#[derive(Default)]
pub(crate) struct Rows(pub(crate) BTreeMap<RowKey, Arc<ir::Resource>>);

/// The only window onto the snapshot.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    snapshot: &'a Snapshot,
}

// === impl Rows ===

impl Rows {
    fn add(&mut self, key: RowKey, build: impl FnOnce() -> ir::Resource) -> &Arc<ir::Resource> {
        self.0.entry(key).or_insert_with(|| Arc::new(build()))
    }
}

// === impl View ===

impl<'a> View<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot }
    }

    fn mesh(&self) -> Arc<Mesh> {
        let first = self.snapshot.meshes.iter().next();
        first.map_or_else(|| Arc::new(Mesh::default()), |(_, mesh)| Arc::clone(mesh))
    }

    fn gateways(&self) -> impl Iterator<Item = (&'a RowId, &'a Arc<Gateway>)> {
        self.snapshot.gateways.iter()
    }

    fn gateway(&self, id: &RowId) -> Option<(&'a RowId, &'a Arc<Gateway>)> {
        self.snapshot.gateways.entry(id)
    }

    fn gateways_named(
        &self,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<Gateway>)> {
        self.snapshot.gateways.find(&(Arc::clone(namespace), Arc::clone(name)))
    }

    fn rules(&self) -> impl Iterator<Item = (&'a RowId, &'a Arc<RouteRules>)> {
        self.snapshot.rules.iter()
    }

    fn rules_bound_to(
        &self,
        gateway: &GatewayName,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<RouteRules>)> {
        self.snapshot.rules.find(gateway)
    }

    /// The service of this host; when several declare it, the first in order.
    fn service(&self, host: &Arc<str>) -> Option<(&'a RowId, &'a Arc<Service>)> {
        self.snapshot.services.find(host).next()
    }

    fn service_by_id(&self, id: &RowId) -> Option<&'a Arc<Service>> {
        self.snapshot.services.get(id)
    }

    fn services(&self) -> impl Iterator<Item = (&'a RowId, &'a Arc<Service>)> {
        self.snapshot.services.iter()
    }

    fn policies_for(
        &self,
        host: &Arc<str>,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<DestinationPolicy>)> {
        self.snapshot.policies.find(host)
    }

    fn policies(&self) -> impl Iterator<Item = (&'a RowId, &'a Arc<DestinationPolicy>)> {
        self.snapshot.policies.iter()
    }

    fn policy(&self, id: &RowId) -> Option<&'a Arc<DestinationPolicy>> {
        self.snapshot.policies.get(id)
    }

    fn slices(
        &self,
        service: &Service,
    ) -> impl Iterator<Item = (&'a RowId, &'a Arc<EndpointSlice>)> {
        let key = (Arc::clone(&service.namespace), Arc::clone(&service.name));
        self.snapshot.slices.find(&key)
    }

    fn workload(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&'a Arc<Workload>> {
        let key = WorkloadKey::Name(Arc::clone(namespace), Arc::clone(name));
        self.snapshot.workloads.find(&key).next().map(|(_, w)| w)
    }

    fn workload_at(&self, address: IpAddr) -> Option<&'a Arc<Workload>> {
        self.snapshot.workloads.find(&WorkloadKey::Address(address)).next().map(|(_, w)| w)
    }

    /// Workloads of a namespace that carry all these labels; none for an empty selector.
    fn workloads_selected(
        &self,
        namespace: &Arc<str>,
        selector: &BTreeMap<Arc<str>, Arc<str>>,
    ) -> impl Iterator<Item = &'a Arc<Workload>> {
        let first = selector.iter().next().map(|(key, value)| {
            WorkloadKey::Label(Arc::clone(namespace), Arc::clone(key), Arc::clone(value))
        });
        let selector = selector.clone();
        first
            .into_iter()
            .flat_map(|key| self.snapshot.workloads.find(&key))
            .map(|(_, workload)| workload)
            .filter(move |workload| selects(&selector, &workload.labels))
    }
}

/// Whether labels carry every pair of a selector.
fn selects(selector: &BTreeMap<Arc<str>, Arc<str>>, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Order of precedence: older first, objects without a creation time last, then namespace and
/// name.
fn precedence(created: Option<i64>, id: &RowId) -> (bool, Option<i64>, &RowId) {
    (created.is_none(), created, id)
}
