//! The typed mesh: what objects of any syntax are lowered to.
//!
//! In: `config` writes these rows. Out: `resolve` reads them.
//!
//! **Invariant:** rows are plain immutable values in the mesh's own terms; short host names are
//! already full here, defaults of the syntax already applied.

mod authentication;
mod gateway;
mod mesh;
mod policy;
mod routing;
mod scope;
mod service;
mod visibility;
mod workload;

pub use ipnet::IpNet;

pub use authentication::{
    ClientTls, OriginTls, PeerMode, PeerPolicy, TLS_MODE, TLS_MODE_LABEL, account, takes_mutual_tls,
};
pub use gateway::{Gateway, HostPattern, HostScope, Server};
pub use mesh::Mesh;
pub use policy::{
    ConnectionPool, DestinationPolicy, HashKey, Http2KeepAlive, HttpPool, LbAlgorithm,
    LoadBalancer, LocalityBalance, OutlierDetection, PlaceShares, Subset, TcpKeepAlive, TcpPool,
    TrafficPolicy, UpgradePolicy,
};
pub use routing::{
    Destination, Forward, GatewayName, HeaderMatch, HttpAction, HttpMatch, HttpRule, PortRedirect,
    QueryMatch, Redirect, RetryBackOff, RetryPolicy, Rewrite, RouteRules, Source, StringMatch,
    TcpMatch, TcpRule, TlsMatch, TlsRule, UriRewrite, WeightedDestination,
};
pub use scope::{EgressListener, IngressListener, IngressTarget, OutboundPolicy, SidecarScope};
pub use service::{
    Declared, Endpoint, EndpointSlice, Protocol, Resolution, Selects, Service, ServicePort,
    SlicePort, TargetPort,
};
pub use visibility::{DefaultVisibility, Visibility};
pub use workload::{CapturedPorts, Locality, Namespace, Node, Workload};
