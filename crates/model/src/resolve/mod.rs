//! What applies to whom: pure queries over the snapshot.
//!
//! In: a `View`. Out: for each group of proxies the keys of the rows that it is to have, and for
//! each key its row. Keys name outcomes, so that groups which resolve alike share rows.
//!
//! | level | queries | read |
//! |---|---|---|
//! | 0 | `Mesh`, `RulesHead`, `Carried`, `Chunk`: the endpoints of one slice | rows |
//! | 1 | `PolicyChain` | policies by host |
//! | 2 | `Outcome`: what the destinations of a rule list come to | rules, services, policies |
//! | 3 | `Group`, `Scope`, `LintRules`, `LintPolicy` | all of these |
//! | 4 | rows: listeners, virtual hosts, clusters, endpoint sets | the rows that their keys name |
//! | 5 | RouteConfigurations with their virtual hosts inside | rows of level 4 |
//!
//! **Invariant:** queries see the snapshot only through the `View`; a row is a function of its key
//! and of what the `View` notes.

mod cluster;
mod destination;
mod group;
mod lint;
mod router;
mod rules;
mod virtual_host;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ir;
use crate::rows::{
    DestinationPolicy, EndpointSlice, Gateway, GatewayName, Mesh, RouteRules, Service, Visibility,
    Workload,
};
use crate::snapshot::{IndexKey, RowId};
use crate::track::{AnyValue, Fact, Query, View, rerun};

pub(crate) use cluster::Chunk;
pub(crate) use destination::{Outcome, PolicyChain};
pub(crate) use group::{Group, GroupOf};
pub(crate) use lint::{LintPolicy, LintRules};
pub(crate) use router::Scope;
use rules::Head;
pub(crate) use rules::{Carried, RulesHead};
use virtual_host::BoundRules;

/// Names a row by the outcome that makes it: groups with the same outcome share the row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A gateway port.
    Listener {
        /// Address; none = all.
        bind: Option<IpAddr>,
        /// Port.
        port: u16,
        /// Servers that open it.
        servers: Servers,
    },
    /// The routes of a port.
    RouteConfiguration {
        /// Name on the wire.
        name: Arc<str>,
        /// Keys of the virtual hosts within it; none = they are discovered one by one.
        inline: Option<Arc<Vec<RowKey>>>,
        /// Servers that open the port.
        servers: Servers,
    },
    /// The routes of a host.
    VirtualHost {
        /// RouteConfiguration.
        route_config: Arc<str>,
        /// Domain.
        domain: Arc<str>,
        /// The rule lists that won, in order of precedence.
        rules: Vec<BoundRules>,
        /// Servers that accept it.
        servers: Servers,
    },
    /// A destination.
    Cluster(ClusterKey),
    /// Its endpoints.
    Endpoints(ClusterKey),
}

/// Gateway servers: the gateway, and the field path of the server in it.
pub(crate) type Servers = Vec<(RowId, Arc<str>)>;

/// Names a cluster by the outcome that makes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// Name on the wire.
    pub name: Arc<str>,
    /// The service and the number of its port; none = there is no such host or port.
    pub service: Option<(RowId, u16)>,
    /// The policies that won, in order.
    pub policies: Vec<RowId>,
    /// The part of the service; none = the whole.
    pub part: Option<Part>,
    /// Whether it has an endpoint set; a policy may say that addresses are taken as they are.
    pub has_endpoints: bool,
    /// Where there is no service: the first destination of the scope that names it, by rule list,
    /// rule and position. It is all that such a cluster comes from.
    pub asked_by: Option<(RowId, usize, usize)>,
}

/// The part of a service that a subset names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Defined by a policy.
    Defined {
        /// The policy.
        policy: RowId,
        /// Name of the subset in it.
        subset: Arc<str>,
    },
    /// Derived from labels of workloads.
    Derived(BTreeMap<Arc<str>, Arc<str>>),
}

/// Settings of the mesh.
#[derive(Clone, Debug)]
pub(crate) struct MeshSettings;

/// The key of any query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Mesh,
    RulesHead(RulesHead),
    Carried(Carried),
    Chunk(Chunk),
    PolicyChain(PolicyChain),
    Outcome(Outcome),
    Group(GroupOf),
    Scope(Scope),
    LintRules(LintRules),
    LintPolicy(LintPolicy),
    Row(RowKey),
}

// === impl Key ===

impl Key {
    /// A query reads only lower levels.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Mesh | Self::RulesHead(_) | Self::Carried(_) | Self::Chunk(_) => 0,
            Self::PolicyChain(_) => 1,
            Self::Outcome(_) => 2,
            Self::Group(_) | Self::Scope(_) | Self::LintRules(_) | Self::LintPolicy(_) => 3,
            Self::Row(RowKey::RouteConfiguration { .. }) => 5,
            Self::Row(_) => 4,
        }
    }

    /// Run the query again: its value, and whether it differs.
    pub(crate) fn rerun(&self, view: &View<'_>, old: &AnyValue) -> (AnyValue, bool) {
        match self {
            Self::Mesh => rerun(&MeshSettings, view, old),
            Self::RulesHead(query) => rerun(query, view, old),
            Self::Carried(query) => rerun(query, view, old),
            Self::Chunk(query) => rerun(query, view, old),
            Self::PolicyChain(query) => rerun(query, view, old),
            Self::Outcome(query) => rerun(query, view, old),
            Self::Group(query) => rerun(query, view, old),
            Self::Scope(query) => rerun(query, view, old),
            Self::LintRules(query) => rerun(query, view, old),
            Self::LintPolicy(query) => rerun(query, view, old),
            Self::Row(query) => rerun(query, view, old),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => write!(f, "mesh settings"),
            Self::RulesHead(q) => write!(f, "hosts and gateways of {}", q.0.object),
            Self::Carried(q) => write!(f, "workloads of {} labelled {:?}", q.namespace, q.labels),
            Self::Chunk(q) => write!(f, "endpoints of {q}"),
            Self::PolicyChain(q) => write!(f, "policies of {} for {}", q.host, q.client),
            Self::Outcome(q) => {
                write!(f, "destinations of {} for {}", q.rules.object, q.client)
            }
            Self::Group(q) => write!(f, "group of {}", q.0.id),
            Self::Scope(q) => write!(f, "scope of {:?}s in {}", q.0.role, q.0.namespace),
            Self::LintRules(q) => write!(f, "problems of {}", q.0.object),
            Self::LintPolicy(q) => write!(f, "problems of {}", q.0.object),
            Self::Row(row) => write!(f, "{row}"),
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { bind, port, .. } => {
                write!(f, "listener {}", crate::names::gateway_listener(*bind, *port))
            }
            Self::RouteConfiguration { name, .. } => write!(f, "route configuration {name}"),
            Self::VirtualHost { route_config, domain, .. } => {
                write!(f, "virtual host {}", crate::names::virtual_host(route_config, domain))
            }
            Self::Cluster(key) => write!(f, "cluster {}", key.name),
            Self::Endpoints(key) => write!(f, "endpoint set {}", key.name),
        }
    }
}

impl Query for MeshSettings {
    type Value = Mesh;

    fn run(&self, view: &View<'_>) -> Mesh {
        let first = view.bucket(&IndexKey::Mesh, |s| &s.meshes).into_iter().next();
        first.map(|(_, mesh)| (*mesh).clone()).unwrap_or_default()
    }

    fn key(&self) -> Key {
        Key::Mesh
    }
}

impl Query for RowKey {
    type Value = ir::Resource;

    fn run(&self, view: &View<'_>) -> ir::Resource {
        match self {
            Self::Listener { bind, port, servers } => {
                ir::Resource::Listener(router::listener(view, *bind, *port, servers))
            }
            Self::RouteConfiguration { name, inline, servers } => {
                let inline = inline.as_ref().map(|keys| keys.as_slice());
                let config = router::route_configuration(view, name, inline, servers);
                ir::Resource::RouteConfiguration(config)
            }
            Self::VirtualHost { route_config, domain, rules, servers } => {
                let host = virtual_host::virtual_host(view, route_config, domain, rules, servers);
                ir::Resource::VirtualHost(host)
            }
            Self::Cluster(key) => ir::Resource::Cluster(Box::new(cluster::cluster(view, key))),
            Self::Endpoints(key) => ir::Resource::Endpoints(cluster::endpoints(view, key)),
        }
    }

    fn key(&self) -> Key {
        Key::Row(self.clone())
    }
}

// === impl View ===

/// What queries read of the snapshot. Every one of these notes what it read.
impl<'a> View<'a> {
    fn mesh(&self) -> Arc<Mesh> {
        self.get(&MeshSettings)
    }

    /// Ids of the rows in a bucket, without their content.
    fn ids<T: crate::snapshot::Indexed>(
        &self,
        key: &IndexKey,
        table: fn(&crate::snapshot::Snapshot) -> &crate::snapshot::Table<T>,
    ) -> Vec<RowId> {
        self.note(Fact::Members(key.clone()));
        table(self.snapshot).find(key).map(|(id, _)| id.clone()).collect()
    }

    /// Rows in a bucket, with their content, in order.
    fn bucket<T: crate::snapshot::Indexed>(
        &self,
        key: &IndexKey,
        table: fn(&crate::snapshot::Snapshot) -> &crate::snapshot::Table<T>,
    ) -> Vec<(RowId, Arc<T>)> {
        self.note(Fact::Members(key.clone()));
        let rows = table(self.snapshot).find(key);
        rows.map(|(id, row)| {
            self.note(Fact::Row(id.clone()));
            (id.clone(), Arc::clone(row))
        })
        .collect()
    }

    fn gateway(&self, id: &RowId) -> Option<Arc<Gateway>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.gateways.get(id).map(|(_, row)| Arc::clone(row))
    }

    fn gateways_named(&self, namespace: &Arc<str>, name: &Arc<str>) -> Vec<(RowId, Arc<Gateway>)> {
        let key = IndexKey::Gateway(Arc::clone(namespace), Arc::clone(name));
        self.bucket(&key, |s| &s.gateways)
    }

    /// Gateways whose selector these labels satisfy, in order.
    fn gateways_selecting(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<RowId> {
        let pairs = labels.iter().map(|(k, v)| Some((Arc::clone(k), Arc::clone(v))));
        let keys = pairs.chain(std::iter::once(None)).map(IndexKey::GatewaySelects);
        let mut found: Vec<RowId> = keys
            .flat_map(|key| self.bucket(&key, |s| &s.gateways))
            .filter(|(_, gateway)| selects(&gateway.selector, labels))
            .map(|(id, _)| id)
            .collect();
        found.sort();
        found
    }

    fn rules(&self, id: &RowId) -> Option<Arc<RouteRules>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.rules.get(id).map(|(_, row)| Arc::clone(row))
    }

    fn rules_of(&self, gateway: &GatewayName) -> Vec<RowId> {
        self.ids(&IndexKey::RulesOf(gateway.clone()), |s| &s.rules)
    }

    fn claims(&self, gateway: &GatewayName, host: &Arc<str>) -> Vec<RowId> {
        self.ids(&IndexKey::Claim(gateway.clone(), Arc::clone(host)), |s| &s.rules)
    }

    fn visibility_of_rules(&self, head: &Head) -> Visibility {
        let default = || self.mesh().rules_export_to.of(&head.namespace);
        head.export_to.clone().unwrap_or_else(default)
    }

    fn visibility_of_policy(&self, policy: &DestinationPolicy) -> Visibility {
        let default = || self.mesh().policies_export_to.of(&policy.namespace);
        policy.export_to.clone().unwrap_or_else(default)
    }

    fn visibility_of_service(&self, service: &Service) -> Visibility {
        let default = || self.mesh().services_export_to.of(&service.namespace);
        service.export_to.clone().unwrap_or_else(default)
    }

    /// The service of this host; when several declare it, the first in order that clients of this
    /// namespace see.
    fn service(&self, host: &Arc<str>, client: &str) -> Option<(RowId, Arc<Service>)> {
        let key = IndexKey::ServiceHost(Arc::clone(host));
        self.ids(&key, |s| &s.services).into_iter().find_map(|id| {
            let row = self.service_by_id(&id)?;
            self.visibility_of_service(&row).sees(client).then_some((id, row))
        })
    }

    fn service_by_id(&self, id: &RowId) -> Option<Arc<Service>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.services.get(id).map(|(_, row)| Arc::clone(row))
    }

    /// Whether any service's host is `host`, itself maybe a pattern.
    fn service_exists(&self, host: &Arc<str>) -> bool {
        let key = if host.starts_with('*') {
            IndexKey::ServiceBelow(Arc::clone(host))
        } else {
            IndexKey::ServiceHost(Arc::clone(host))
        };
        !self.ids(&key, |s| &s.services).is_empty()
    }

    /// Services of a namespace that select these labels, in order.
    fn services_selecting(
        &self,
        namespace: &Arc<str>,
        labels: &BTreeMap<Arc<str>, Arc<str>>,
    ) -> Vec<(RowId, Arc<Service>)> {
        let key = |(k, v): (&Arc<str>, &Arc<str>)| {
            IndexKey::ServiceSelects(Arc::clone(namespace), Arc::clone(k), Arc::clone(v))
        };
        let mut found: Vec<_> = labels
            .iter()
            .map(key)
            .flat_map(|key| self.bucket(&key, |s| &s.services))
            .filter(|(_, service)| selects(&service.selector, labels))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    fn policies_for(&self, host: &Arc<str>) -> Vec<(RowId, Arc<DestinationPolicy>)> {
        self.bucket(&IndexKey::Policy(Arc::clone(host)), |s| &s.policies)
    }

    fn policy(&self, id: &RowId) -> Option<Arc<DestinationPolicy>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.policies.get(id).map(|(_, row)| Arc::clone(row))
    }

    /// Ids of the slices of a service, in order.
    fn slices(&self, service: &Service) -> Vec<RowId> {
        let key = IndexKey::Slice(Arc::clone(&service.namespace), Arc::clone(&service.name));
        self.ids(&key, |s| &s.slices)
    }

    fn slice(&self, id: &RowId) -> Option<Arc<EndpointSlice>> {
        self.note(Fact::Row(id.clone()));
        self.snapshot.slices.get(id).map(|(_, row)| Arc::clone(row))
    }

    fn workload(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<Arc<Workload>> {
        let key = IndexKey::WorkloadName(Arc::clone(namespace), Arc::clone(name));
        self.bucket(&key, |s| &s.workloads).into_iter().next().map(|(_, w)| w)
    }

    fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let key = IndexKey::WorkloadAddress(address);
        self.bucket(&key, |s| &s.workloads).into_iter().next().map(|(_, w)| w)
    }

    /// Whether a workload of the namespace carries all these labels; no for an empty selector.
    fn any_workload(&self, namespace: &Arc<str>, selector: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        let Some((key, value)) = selector.iter().next() else { return false };
        let namespace = Arc::clone(namespace);
        let key = IndexKey::WorkloadLabel(namespace, Arc::clone(key), Arc::clone(value));
        let all = self.bucket(&key, |s| &s.workloads);
        all.iter().any(|(_, workload)| selects(selector, &workload.labels))
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
