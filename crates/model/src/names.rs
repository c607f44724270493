//! Names on the wire, as people's dashboards and tools know them.
//!
//! Each is built here and nowhere else: producer and consumer of a name (a route and the cluster
//! it names, a cluster and its endpoints) rely on the same function.
//!
//! **Invariant:** pure text; never parsed back.

use std::net::IpAddr;
use std::sync::Arc;

/// Cluster of a service port: `outbound|80|v1|reviews.default.svc.cluster.local`. The endpoint
/// set of the cluster has the same name.
pub fn outbound_cluster(port: u16, subset: Option<&str>, host: &str) -> Arc<str> {
    Arc::from(format!("outbound|{port}|{}|{host}", subset.unwrap_or_default()))
}

/// Listener of a gateway port: `0.0.0.0_8080`.
pub fn gateway_listener(bind: Option<IpAddr>, port: u16) -> Arc<str> {
    match bind {
        None => Arc::from(format!("0.0.0.0_{port}")),
        Some(address) => Arc::from(format!("{address}_{port}")),
    }
}

/// RouteConfiguration of a gateway port: `http.8080`, with the address where it is bound to one.
pub fn gateway_route_config(bind: Option<IpAddr>, port: u16) -> Arc<str> {
    match bind {
        None => Arc::from(format!("http.{port}")),
        Some(address) => Arc::from(format!("http.{port}.{address}")),
    }
}

/// Listener that everything comes to which leaves a workload.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";

/// Listener that everything comes to which is for a workload.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";

/// Listener of a port of a workload that its proxy opens itself: `inbound|127.0.0.1_8080`.
pub fn inbound_listener(bind: Option<IpAddr>, port: u16) -> Arc<str> {
    Arc::from(format!("inbound|{}", gateway_listener(bind, port)))
}

/// Cluster of a port of a workload: `inbound|8080||`.
pub fn inbound_cluster(port: u16) -> Arc<str> {
    Arc::from(format!("inbound|{port}||"))
}

/// Cluster that sends connections to the workload beside the proxy.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Cluster that sends connections where they were meant to go.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// Cluster that refuses connections.
pub const BLACK_HOLE: &str = "BlackHoleCluster";

/// Listener of what leaves a workload for a port: `0.0.0.0_80`, with the address in its place where
/// the proxy opens it itself.
pub fn outbound_listener(bind: Option<IpAddr>, port: u16) -> Arc<str> {
    gateway_listener(bind, port)
}

/// Listener of connections that leave a workload for an address of a service: `10.0.0.1_3306`.
pub fn tcp_listener(address: IpAddr, port: u16) -> Arc<str> {
    Arc::from(format!("{address}_{port}"))
}

/// RouteConfiguration of HTTP that leaves a workload for a port: `80`.
pub fn outbound_route_config(port: u16) -> Arc<str> {
    Arc::from(port.to_string())
}

/// A virtual host: `<route configuration>/<domain>`, both as VHDS names it and within its
/// RouteConfiguration.
///
/// The two must be equal: Envoy looks for what VHDS removes under the name *inside* the virtual
/// host, and accepts in silence that it finds nothing.
pub fn virtual_host(route_config: &str, domain: &str) -> Arc<str> {
    Arc::from(format!("{route_config}/{domain}"))
}

/// Name that a client of the mesh asks for by TLS, of a cluster such as `outbound|80|v1|a.b`:
/// `outbound_.80_.v1_.a.b`.
pub fn server_name(cluster: &str) -> Arc<str> {
    Arc::from(cluster.replace('|', "_."))
}
