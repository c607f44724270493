//! What applies to whom: pure queries over the snapshot.
//!
//! In: a `View`. Out: for each group of proxies the keys of the rows that it is to have, and for
//! each key its row. Keys name outcomes, so that groups which resolve alike share rows.
//!
//! | level | queries | read |
//! |---|---|---|
//! | 0 | `Mesh`, `RulesHead`, `Carried` | rows |
//! | 1 | `PolicyChain`, `Imported`, `Excluded`, `PeerModes`, `AskedLabels`, `Mentions`: namespaces that a host is named for | rows |
//! | 2 | `Outcome`, `RuledConnections`: what destinations of rules come to; `PortMentions`; `Chunk`, `Selected`: endpoints of a slice, a selector | rules, services, policies |
//! | 3 | `BaseView`, `SharedPort`: what sidecars have whatever hosts there are; `Accounts` of endpoints | services, rules, endpoints |
//! | 4 | `PortView`: listener and routes of a port | these, rules for `*` |
//! | 5 | `HostView`: what one viewer gets for a host | all of these |
//! | 6 | `HostViews`, `SidecarRows`, `Group`, `Lint` | all of these |
//! | 7 | `Scope`: what a group has of its own | all of these |
//! | 8 | rows: listeners, virtual hosts, clusters, endpoint sets | the rows that their keys name |
//! | 9 | RouteConfigurations with their virtual hosts inside | rows of level 8 |
//!
//! **Invariant:** queries see the snapshot only through the `View`; a row is a function of its key
//! and of what the `View` notes.

mod authentication;
mod client;
mod cluster;
mod connections;
mod destination;
mod endpoints;
mod group;
mod inbound;
mod lint;
mod lint_services;
mod listener;
mod place;
mod router;
mod rules;
mod scope;
mod sidecar;
mod view;
mod views;
mod virtual_host;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ir;
use crate::names;
use crate::rows::{Mesh, OutboundPolicy};
use crate::snapshot::{IndexKey, RowId};
use crate::track::{AnyValue, Query, View, rerun};

use authentication::OtherPorts;
pub(crate) use authentication::PeerModes;
pub(crate) use client::Client;
use connections::{ChainKey, Chains};
pub(crate) use connections::{RuledConnections, SharedPort};
pub(crate) use destination::{Outcome, PolicyChain};
pub(crate) use endpoints::{Accounts, Chunk, Selected};
pub(crate) use group::{Group, GroupOf, GroupRole};
use inbound::InboundKey;
pub(crate) use lint::Lint;
pub(crate) use place::AskedLabels;
pub(crate) use place::Near;
pub(crate) use rules::{Carried, Excluded, RulesHead};
pub(crate) use scope::Scope;
pub(crate) use sidecar::{BaseView, HostView, Imported, PortView, SidecarRows, Viewer};
pub(crate) use views::{HostViews, Mentions, PortMentions, Views};
use virtual_host::BoundRules;

/// Labels of workloads.
pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Keys of rows; shared, because each is in many sets.
pub(crate) type RowSet = BTreeSet<Arc<RowKey>>;

/// Names a row by the outcome that makes it: groups with the same outcome share the row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A gateway port.
    GatewayListener {
        /// Address; none = all.
        bind: Option<IpAddr>,
        /// Port.
        port: u16,
        /// Servers that open it.
        servers: Servers,
    },
    /// Where everything comes in that leaves a workload.
    VirtualOutbound {
        /// What becomes of what no other listener takes.
        policy: OutboundPolicy,
    },
    /// What leaves a workload for a port.
    OutboundListener {
        /// Address that the proxy opens it on; none = connections are captured.
        bind: Option<IpAddr>,
        /// Port.
        port: u16,
        /// Whether HTTP is looked for.
        http: bool,
        /// Connections that are no HTTP, by what they are.
        chains: Chains,
        /// The service that has all others.
        otherwise: Option<ChainKey>,
        /// What becomes of them where there is none.
        policy: OutboundPolicy,
    },
    /// What leaves a workload for a port of an address of a service.
    AddressListener {
        /// The address.
        address: IpAddr,
        /// Port of the service.
        port: u16,
        /// Whether HTTP is looked for.
        http: bool,
        /// The service.
        service: RowId,
        /// Connections that are no HTTP, by what they are.
        chains: Vec<ChainKey>,
        /// All others.
        otherwise: ChainKey,
    },
    /// Where everything comes in that is for a workload.
    VirtualInbound {
        /// Ports of the workload.
        ports: Vec<InboundKey>,
        /// What it takes on others.
        others: OtherPorts,
    },
    /// A port of a workload that its proxy opens.
    InboundListener(InboundKey),
    /// The workload itself, by one of its ports.
    InboundCluster(InboundKey),
    /// The routes of a port.
    RouteConfiguration {
        /// Name on the wire.
        name: Arc<str>,
        /// Keys of the virtual hosts within it; none = they are discovered one by one.
        inline: Option<Arc<Vec<Arc<RowKey>>>>,
        /// Servers that open the port.
        servers: Servers,
    },
    /// The routes of a host.
    VirtualHost(HostKey),
    /// A cluster that no service stands behind.
    BuiltIn(BuiltIn),
    /// A destination.
    Cluster {
        /// The destination.
        cluster: ClusterKey,
        /// Whether the proxy holds a certificate of its workload.
        mutual_tls: bool,
    },
    /// Its endpoints.
    Endpoints {
        /// The destination.
        cluster: ClusterKey,
        /// Where the client runs, as far as it matters.
        near: Option<Near>,
    },
}

/// Names a virtual host by the outcome that makes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey {
    /// RouteConfiguration.
    pub route_config: Arc<str>,
    /// Domain.
    pub domain: Arc<str>,
    /// Its other names.
    pub names: HostNames,
    /// The rule lists that won, in order of precedence.
    pub rules: Vec<BoundRules>,
    /// What becomes of requests where there are no rules.
    pub otherwise: Otherwise,
    /// Gateway servers that accept it.
    pub servers: Servers,
}

/// What a host is called besides its domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostNames {
    /// Nothing.
    Domain,
    /// As its service.
    Service {
        /// The service.
        id: RowId,
        /// Whether clients are of the service's namespace.
        own: bool,
        /// Port of the service.
        port: u16,
    },
    /// As the endpoints of a headless service.
    Endpoints {
        /// The service.
        id: RowId,
        /// Whether clients are of the service's namespace.
        own: bool,
    },
}

/// What becomes of requests for a host without rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Otherwise {
    /// 404.
    NotFound,
    /// They go to this cluster.
    Cluster(ClusterKey),
    /// The host is not declared: the policy says.
    Policy(OutboundPolicy),
}

/// Clusters that no service stands behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltIn {
    /// Connects to where the client meant to.
    Passthrough,
    /// Connects to the workload beside the proxy, as the client meant to.
    InboundPassthrough,
    /// Refuses.
    BlackHole,
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
    AskedLabels,
    PeerModes(PeerModes),
    Chunk(Chunk),
    Selected(Selected),
    Accounts(Accounts),
    Imported(Imported),
    Excluded(Excluded),
    RuledConnections(RuledConnections),
    SharedPort(SharedPort),
    PolicyChain(PolicyChain),
    Mentions(Mentions),
    PortMentions(PortMentions),
    Outcome(Outcome),
    BaseView(BaseView),
    PortView(PortView),
    HostView(HostView),
    HostViews(HostViews),
    SidecarRows(SidecarRows),
    Group(GroupOf),
    Scope(Scope),
    Lint(Lint),
    Row(Arc<RowKey>),
}

// === impl BuiltIn ===

impl BuiltIn {
    /// The one that a policy comes to.
    pub(crate) fn of(policy: OutboundPolicy) -> Self {
        match policy {
            OutboundPolicy::AllowAny => Self::Passthrough,
            OutboundPolicy::RegistryOnly => Self::BlackHole,
        }
    }

    /// Name on the wire.
    pub(crate) fn name(self) -> Arc<str> {
        Arc::from(match self {
            Self::Passthrough => names::PASSTHROUGH,
            Self::InboundPassthrough => names::INBOUND_PASSTHROUGH,
            Self::BlackHole => names::BLACK_HOLE,
        })
    }
}

// === impl Key ===

impl Key {
    /// A query reads only lower levels.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Mesh | Self::RulesHead(_) | Self::Carried(_) => 0,
            Self::AskedLabels
            | Self::PeerModes(_)
            | Self::Imported(_)
            | Self::Excluded(_)
            | Self::PolicyChain(_)
            | Self::Mentions(_) => 1,
            Self::Outcome(_)
            | Self::RuledConnections(_)
            | Self::PortMentions(_)
            | Self::Chunk(_)
            | Self::Selected(_) => 2,
            Self::BaseView(_) | Self::SharedPort(_) | Self::Accounts(_) => 3,
            Self::PortView(_) => 4,
            Self::HostView(_) => 5,
            Self::HostViews(_) | Self::SidecarRows(_) | Self::Group(_) | Self::Lint(_) => 6,
            Self::Scope(_) => 7,
            Self::Row(row) => match **row {
                RowKey::RouteConfiguration { .. } => 9,
                _ => 8,
            },
        }
    }

    /// Run the query again: its value, and whether it differs.
    pub(crate) fn rerun(&self, view: &View<'_>, old: &AnyValue) -> (AnyValue, bool) {
        match self {
            Self::Mesh => rerun(&MeshSettings, view, old),
            Self::RulesHead(query) => rerun(query, view, old),
            Self::Carried(query) => rerun(query, view, old),
            Self::AskedLabels => rerun(&AskedLabels, view, old),
            Self::PeerModes(query) => rerun(query, view, old),
            Self::Chunk(query) => rerun(query, view, old),
            Self::Accounts(query) => rerun(query, view, old),
            Self::Selected(query) => rerun(query, view, old),
            Self::Imported(query) => rerun(query, view, old),
            Self::Excluded(query) => rerun(query, view, old),
            Self::RuledConnections(query) => rerun(query, view, old),
            Self::SharedPort(query) => rerun(query, view, old),
            Self::PolicyChain(query) => rerun(query, view, old),
            Self::Mentions(query) => rerun(query, view, old),
            Self::PortMentions(query) => rerun(query, view, old),
            Self::Outcome(query) => rerun(query, view, old),
            Self::BaseView(query) => rerun(query, view, old),
            Self::PortView(query) => rerun(query, view, old),
            Self::HostView(query) => rerun(query, view, old),
            Self::HostViews(query) => rerun(query, view, old),
            Self::SidecarRows(query) => rerun(query, view, old),
            Self::Group(query) => rerun(query, view, old),
            Self::Scope(query) => rerun(query, view, old),
            Self::Lint(query) => rerun(query, view, old),
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
            Self::AskedLabels => write!(f, "labels that decide about places"),
            Self::PeerModes(q) => write!(f, "what workloads of {} take", q.0),
            Self::Chunk(q) => write!(f, "endpoints of {q}"),
            Self::Accounts(q) => write!(f, "accounts of {}", q.service.object),
            Self::Imported(q) => write!(f, "hosts that {} lets through", q.0.object),
            Self::Excluded(q) => {
                write!(f, "conditions of {} that do not hold for {}", q.rules.object, q.client)
            }
            Self::RuledConnections(q) => {
                write!(f, "connections to port {} by {}", q.port, q.rules.object)
            }
            Self::SharedPort(q) => write!(f, "shared port {} for {}", q.port, q.viewer.client),
            Self::Selected(q) => write!(f, "{q}"),
            Self::PortMentions(q) => write!(f, "namespaces named for port {}", q.0),
            Self::Mentions(q) => write!(f, "namespaces named for {}", q.0),
            Self::BaseView(q) => write!(f, "what every sidecar of {} has", q.0.client),
            Self::PortView(q) => write!(f, "port {} for {}", q.port, q.viewer.client),
            Self::HostView(q) => write!(f, "host {} for {}", q.host, q.viewer.client),
            Self::HostViews(q) => write!(f, "host {} for all namespaces", q.host),
            Self::SidecarRows(q) => write!(f, "all hosts for {}", q.0.client),
            Self::PolicyChain(q) => write!(f, "policies of {} for {}", q.host, q.client),
            Self::Outcome(q) => {
                write!(f, "destinations of {} for {}", q.rules.object, q.client)
            }
            Self::Group(q) => write!(f, "group of {}", q.0.id),
            Self::Scope(q) => match q.0.role {
                GroupRole::Router { .. } => write!(f, "scope of gateways in {}", q.0.namespace),
                GroupRole::Sidecar { .. } => write!(f, "scope of sidecars in {}", q.0.namespace),
            },
            Self::Lint(q) => write!(f, "problems of {}", q.0.object),
            Self::Row(row) => write!(f, "{row}"),
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GatewayListener { bind, port, .. } => {
                write!(f, "listener {}", names::gateway_listener(*bind, *port))
            }
            Self::VirtualOutbound { .. } => write!(f, "listener {}", names::VIRTUAL_OUTBOUND),
            Self::OutboundListener { bind, port, .. } => {
                write!(f, "listener {}", names::outbound_listener(*bind, *port))
            }
            Self::VirtualInbound { .. } => write!(f, "listener {}", names::VIRTUAL_INBOUND),
            Self::InboundListener(key) => {
                write!(f, "listener {}", names::inbound_listener(key.bind, key.port))
            }
            Self::InboundCluster(key) => {
                write!(f, "cluster {}", names::inbound_cluster(key.port))
            }
            Self::AddressListener { address, port, .. } => {
                write!(f, "listener {}", names::tcp_listener(*address, *port))
            }
            Self::BuiltIn(which) => write!(f, "cluster {}", which.name()),
            Self::RouteConfiguration { name, .. } => write!(f, "route configuration {name}"),
            Self::VirtualHost(key) => {
                let name = names::virtual_host(&key.route_config, &key.domain);
                write!(f, "virtual host {name}")
            }
            Self::Cluster { cluster, .. } => write!(f, "cluster {}", cluster.name),
            Self::Endpoints { cluster, .. } => write!(f, "endpoint set {}", cluster.name),
        }
    }
}

impl Query for MeshSettings {
    type Value = Mesh;

    fn run(&self, view: &View<'_>) -> Mesh {
        let first = view.bucket(&IndexKey::Mesh, |s| &s.meshes).into_iter().next();
        let mut mesh = first.map(|(_, mesh)| (*mesh).clone()).unwrap_or_default();
        if let Some(own) = view.trust_domain() {
            mesh.trust_domain = own;
        }
        mesh
    }

    fn key(&self) -> Key {
        Key::Mesh
    }
}

impl Query for Arc<RowKey> {
    type Value = ir::Resource;

    fn run(&self, view: &View<'_>) -> ir::Resource {
        use ir::Resource::{Cluster, Endpoints, Listener, RouteConfiguration, VirtualHost};
        match &**self {
            RowKey::GatewayListener { bind, port, servers } => {
                Listener(listener::gateway(view, *bind, *port, servers))
            }
            RowKey::VirtualOutbound { policy } => {
                Listener(listener::virtual_outbound(view, *policy))
            }
            RowKey::OutboundListener { bind, port, http, chains, otherwise, policy } => {
                let otherwise = otherwise.as_ref().ok_or(*policy);
                Listener(listener::outbound(view, (*bind, *port), *http, chains, otherwise))
            }
            RowKey::AddressListener { address, port, http, service, chains, otherwise } => {
                let at = (*address, *port);
                Listener(listener::to_address(view, at, *http, service, chains, otherwise))
            }
            RowKey::VirtualInbound { ports, others } => {
                Listener(inbound::virtual_inbound(view, ports, others))
            }
            RowKey::InboundListener(key) => Listener(inbound::opened(view, key)),
            RowKey::InboundCluster(key) => Cluster(Box::new(inbound::cluster(view, key))),
            RowKey::RouteConfiguration { name, inline, servers } => {
                let inline = inline.as_ref().map(|keys| keys.as_slice());
                RouteConfiguration(router::route_configuration(view, name, inline, servers))
            }
            RowKey::VirtualHost(key) => VirtualHost(virtual_host::virtual_host(view, key)),
            RowKey::BuiltIn(which) => Cluster(Box::new(cluster::built_in(view, *which))),
            RowKey::Cluster { cluster, mutual_tls } => {
                Cluster(Box::new(cluster::cluster(view, cluster, *mutual_tls)))
            }
            RowKey::Endpoints { cluster, near } => {
                Endpoints(endpoints::endpoints(view, cluster, near.as_ref()))
            }
        }
    }

    fn key(&self) -> Key {
        Key::Row(Arc::clone(self))
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
