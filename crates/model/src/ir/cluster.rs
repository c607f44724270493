//! Clusters and their endpoints.
//!
//! **Invariant:** endpoints are in no cluster value: an endpoint that comes or goes changes one
//! endpoint set and nothing else.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::object::Origins;
use crate::rows::{ConnectionPool, LbAlgorithm, Locality, OriginTls, OutlierDetection, Protocol};

/// An endpoint that is looked up in DNS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedEndpoint {
    /// Its name, or an address.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// Where it runs.
    pub locality: Locality,
    /// Share of requests relative to others; at least 1.
    pub weight: u32,
    /// Whether it takes mutual TLS of the mesh.
    pub mutual_tls: bool,
}

/// How connections are secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamTls {
    /// Not at all.
    Plain,
    /// By mutual TLS of the mesh, to endpoints that take it.
    WhereTaken(MeshTls),
    /// By mutual TLS of the mesh.
    Always(MeshTls),
    /// By TLS to servers that are not of the mesh.
    Origin(Arc<OriginTls>),
}

/// Mutual TLS of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshTls {
    /// Name to ask for.
    pub sni: Arc<str>,
    /// Names one of which the server must prove, sorted. Empty = any identity of the mesh.
    pub names: Vec<Arc<str>>,
    /// Domain of the mesh's identities.
    pub trust_domain: Arc<str>,
    /// What is spoken within.
    pub protocol: Protocol,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEndpoints {
    /// By EDS, under the name of the cluster.
    Discovered,
    /// There are none and there will be none while the cluster is this: requests get 503.
    None,
    /// Whatever address the connection was meant for.
    Original,
    /// The workload beside the proxy, by the address that the connection was meant for.
    Local {
        /// Port in place of the one that it was meant for.
        port: Option<u16>,
    },
    /// All addresses that DNS has for these names.
    Named(Vec<NamedEndpoint>),
    /// The address that DNS has for a name when a connection is opened.
    NamedOnce(NamedEndpoint),
    /// This address of the workload's own machine.
    Address(IpAddr, u16),
    /// This Unix domain socket.
    Socket(Arc<str>),
}

/// The HTTP version spoken to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever the client spoke.
    AsClient,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Name.
    pub name: Arc<str>,
    /// Source of its endpoints.
    pub endpoints: ClusterEndpoints,
    /// HTTP version.
    pub http_version: HttpVersion,
    /// Load balancing.
    pub load_balancer: LbAlgorithm,
    /// Whether shares of places count.
    pub distributes: bool,
    /// Whether a request may name the endpoint that it is for, in the header `PINNED`.
    pub pinned: bool,
    /// How connections are secured.
    pub tls: UpstreamTls,
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// Limits; what decides `connect_timeout` and `http_version` has been applied and is not here.
    pub pool: ConnectionPool,
    /// Setting endpoints aside.
    pub outlier_detection: Option<OutlierDetection>,
    /// Service, subset and policies behind it.
    pub origins: Origins,
}

/// Header that names the endpoint a request is for, to clusters that are `pinned`.
pub const PINNED: &str = "x-heddle-endpoint";

/// Endpoints that come and go together: those of one slice.
#[derive(Debug, Default)]
pub struct EndpointChunk {
    /// Sorted, each address and port once.
    pub endpoints: Vec<EndpointAddress>,
    /// Whom those that take mutual TLS run as, as `ns/<namespace>/sa/<account>`; none = nobody
    /// said.
    pub accounts: BTreeSet<Option<Arc<str>>>,
    /// What was made of them, kept by who made it. Takes no part in equality.
    pub memo: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointAddress {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it takes no new requests but may finish what it has.
    pub draining: bool,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Share of requests relative to others; at least 1.
    pub weight: u32,
    /// Whether it takes mutual TLS of the mesh.
    pub mutual_tls: bool,
    /// Those of its labels in which it matters whether it agrees with clients. Shape: none = none.
    pub labels: Option<Arc<BTreeMap<Arc<str>, Arc<str>>>>,
}

/// Endpoints that are alike to all clients: of one place, and of the same labels as far as they
/// matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Where they run.
    pub locality: Arc<Locality>,
    /// As in `EndpointAddress`.
    pub labels: Option<Arc<BTreeMap<Arc<str>, Arc<str>>>>,
}

/// How much a place counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 0 first; others while earlier ones are not healthy.
    pub priority: u32,
    /// Share of requests relative to other places of the priority. Shape: none = the sum of its
    /// endpoints' weights.
    pub share: Option<u32>,
}

/// Places that count, and how much.
pub type Places = BTreeMap<Spot, Place>;

/// The endpoints of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Cluster they belong to.
    pub cluster: Arc<str>,
    /// In the order of slices; each address and port once in all of them together.
    pub chunks: Vec<Arc<EndpointChunk>>,
    /// Places that count; endpoints elsewhere do not. Shape: none = all count the same.
    pub places: Option<Places>,
    /// The service.
    pub origins: Origins,
}

// === impl EndpointAddress ===

impl EndpointAddress {
    /// Whom it is like.
    pub fn spot(&self) -> Spot {
        Spot { locality: Arc::clone(&self.locality), labels: self.labels.clone() }
    }
}

// === impl EndpointChunk ===

impl EndpointChunk {
    /// A chunk of these endpoints.
    pub fn new(endpoints: Vec<EndpointAddress>, accounts: BTreeSet<Option<Arc<str>>>) -> Self {
        Self { endpoints, accounts, memo: OnceLock::new() }
    }
}

impl PartialEq for EndpointChunk {
    fn eq(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints && self.accounts == other.accounts
    }
}

impl Eq for EndpointChunk {}
