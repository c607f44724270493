//! What a proxy is to have, in the mesh's own terms: the waist of the hourglass.
//!
//! In: `resolve` builds these values. Out: `translate` spells each as one Envoy resource, reading
//! nothing else.
//!
//! **Invariant:** an `ir` value holds everything that decides the bytes of its resource, so it is
//! its own cache key; origins never take part in equality.

mod cluster;
mod listener;
mod route;

pub use cluster::{
    Cluster, ClusterEndpoints, EndpointAddress, EndpointChunk, Endpoints, HttpVersion, MeshTls,
    NamedEndpoint, PINNED, Place, Places, Spot, UpstreamTls,
};
pub use listener::{Chain, InboundPort, Listener, OtherPorts, Serves, Shares, Takes};
pub use route::{
    Action, PathMatch, RedirectTo, Route, RouteConfiguration, RouteMatch, VirtualHost,
    VirtualHosts, WeightedCluster,
};

use std::sync::Arc;

use crate::object::Origins;

/// One resource of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A port that the proxy opens.
    Listener(Listener),
    /// The routes of a port.
    RouteConfiguration(RouteConfiguration),
    /// The routes of a host on a port.
    VirtualHost(VirtualHost),
    /// A destination.
    Cluster(Box<Cluster>),
    /// The endpoints of a destination.
    Endpoints(Endpoints),
}

// === impl Resource ===

impl Resource {
    /// Name on the wire.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Listener(r) => Arc::clone(&r.name),
            Self::RouteConfiguration(r) => Arc::clone(&r.name),
            Self::VirtualHost(r) => Arc::clone(&r.name),
            Self::Cluster(r) => Arc::clone(&r.name),
            Self::Endpoints(r) => Arc::clone(&r.cluster),
        }
    }

    /// Where it comes from.
    pub fn origins(&self) -> &Origins {
        match self {
            Self::Listener(r) => &r.origins,
            Self::RouteConfiguration(r) => &r.origins,
            Self::VirtualHost(r) => &r.origins,
            Self::Cluster(r) => &r.origins,
            Self::Endpoints(r) => &r.origins,
        }
    }
}
