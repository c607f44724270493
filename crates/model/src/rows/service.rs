//! Services and the endpoints behind them.
//!
//! **Invariant:** a service is named by its full host; how it was declared is not visible.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::authentication::account;
use super::visibility::Visibility;
use super::workload::Locality;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1, or whatever the client offers.
    Http,
    /// HTTP/2 without TLS, gRPC included.
    Http2,
    /// Bytes.
    Tcp,
    /// TLS that proxies do not terminate.
    Tls,
    /// Datagrams: never proxied.
    Udp,
    /// Not declared; to be found out.
    Unknown,
}

/// Where traffic to a service port arrives at a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The workload's port of this name.
    Name(Arc<str>),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Number that clients use.
    pub number: u16,
    /// Name; empty when the only port has none.
    pub name: Arc<str>,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Where it arrives.
    pub target: TargetPort,
}

/// How connections find an endpoint of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// One of its endpoint slices and selected workloads.
    #[default]
    Endpoints,
    /// One of the addresses that DNS has for the names that its slices hold.
    Dns,
    /// The address that DNS has for the one name that its slices hold, asked anew for each
    /// connection.
    DnsRoundRobin,
    /// The address that the client meant.
    Original,
}

/// Whom the selector of a service selects, beside those that its slices name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selects {
    /// Workloads that users registered: pods come by slices.
    #[default]
    Registered,
    /// Every workload.
    All,
}

/// A service: a host with ports, and workloads behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Service {
    /// Full host, such as `reviews.default.svc.cluster.local`, or a pattern such as `*.a.com`.
    pub host: Arc<str>,
    /// Namespace it belongs to.
    pub namespace: Arc<str>,
    /// Short name, by which endpoint slices refer to it.
    pub name: Arc<str>,
    /// Creation time in seconds since the epoch, where another may declare the same host.
    pub created: Option<i64>,
    /// Addresses that clients use for all of it.
    pub addresses: Vec<IpAddr>,
    /// Blocks of such addresses.
    pub subnets: Vec<IpNet>,
    /// Whether clients use the addresses of its endpoints, which DNS tells them. A service
    /// without addresses that is not headless may have any.
    pub headless: bool,
    /// How an endpoint is found.
    pub resolution: Resolution,
    /// Host that this one is but another name for, as long as there is a service of it.
    pub alias_of: Option<Arc<str>>,
    /// Ports in declared order.
    pub ports: Vec<ServicePort>,
    /// Labels of its workloads; empty = endpoints are given otherwise.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Whom they select.
    pub selects: Selects,
    /// Namespaces to whose clients it exists. Shape: none = as the mesh has it.
    pub export_to: Option<Visibility>,
}

/// A port of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Name of the service port that it serves.
    pub name: Arc<str>,
    /// Number at the endpoint.
    pub number: u16,
}

/// What a user says of an endpoint, where Kubernetes does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Declared {
    /// Name to look up in DNS, where it has no address.
    pub dns_name: Option<Arc<str>>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Identity it runs as. Shape: none = nobody said.
    pub service_account: Option<Arc<str>>,
    /// Where it runs.
    pub locality: Locality,
    /// Share of requests relative to others; at least 1.
    pub weight: u32,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Addresses of the same endpoint; the first is used.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it is going away but still serves what it has.
    pub draining: bool,
    /// Name of the workload behind it, in the slice's namespace.
    pub workload: Option<Arc<str>>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its zone, where nothing more is known of the node.
    pub zone: Option<Arc<str>>,
    /// What its user says of it.
    pub declared: Option<Arc<Declared>>,
}

/// Some of the endpoints of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Namespace of slice and service.
    pub namespace: Arc<str>,
    /// Short name of the service.
    pub service: Arc<str>,
    /// Ports that every endpoint of the slice has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

// === impl Declared ===

impl Declared {
    /// Whom it runs as, in this namespace, as identities name it.
    pub fn account(&self, namespace: &str) -> Option<Arc<str>> {
        self.service_account.as_ref().map(|name| account(namespace, name))
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// One that DNS has for a name.
    pub fn named(name: &Arc<str>) -> Self {
        let declared = Declared {
            dns_name: Some(Arc::clone(name)),
            labels: BTreeMap::new(),
            service_account: None,
            locality: Locality::default(),
            weight: 1,
        };
        Self { ready: true, declared: Some(declared.into()), ..Self::default() }
    }
}

// === impl Service ===

impl Service {
    /// Whether connections to a port of it come in where those to other services do.
    pub fn shares_port(&self, port: u16) -> bool {
        let shares = |p: &ServicePort| p.number == port && p.protocol.is_stream();
        !self.headless
            && (self.addresses.is_empty() || !self.subnets.is_empty())
            && self.ports.iter().any(shares)
    }
}

// === impl Protocol ===

impl Protocol {
    /// Whether connections on such a port are, or may be, no HTTP.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls | Self::Unknown)
    }

    /// Whether requests on such a port are routed by host: everything that is, or may be, HTTP.
    pub fn is_http(self) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::Unknown => true,
            Self::Tcp | Self::Tls | Self::Udp => false,
        }
    }
}
