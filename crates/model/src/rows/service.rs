//! Services and the endpoints behind them.
//!
//! **Invariant:** a service is named by its full host; how it was declared is not visible.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::visibility::Visibility;

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

/// A service: a host with ports, and workloads behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Full host, such as `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// Namespace it belongs to.
    pub namespace: Arc<str>,
    /// Short name, by which endpoint slices refer to it.
    pub name: Arc<str>,
    /// Addresses that clients use for all of it; none when it has only those of its endpoints.
    pub addresses: Vec<IpAddr>,
    /// Ports in declared order.
    pub ports: Vec<ServicePort>,
    /// Labels of its workloads; empty = endpoints are given otherwise.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
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

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

// === impl Protocol ===

impl Protocol {
    /// Whether requests on such a port are routed by host: everything that is, or may be, HTTP.
    pub fn is_http(self) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::Unknown => true,
            Self::Tcp | Self::Tls | Self::Udp => false,
        }
    }
}
