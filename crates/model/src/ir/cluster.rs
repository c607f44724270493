//! Clusters and their endpoints.
//!
//! **Invariant:** endpoints are in no cluster value: an endpoint that comes or goes changes one
//! endpoint set and nothing else.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::object::Origins;
use crate::rows::{LbAlgorithm, Locality, OutlierDetection, TcpPool};

/// Where the endpoints of a cluster come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEndpoints {
    /// By EDS, under the name of the cluster.
    Discovered,
    /// There are none and there will be none while the cluster is this: requests get 503.
    None,
    /// Whatever address the connection was meant for.
    Original,
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
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// TCP limits; `connect_timeout` in it has been applied above.
    pub tcp: TcpPool,
    /// Requests waiting for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests on one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// Time without requests that closes a connection.
    pub idle_timeout: Option<Duration>,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// PINGs on HTTP/2 connections.
    pub http2_keep_alive: Option<crate::rows::Http2KeepAlive>,
    /// Setting endpoints aside.
    pub outlier_detection: Option<OutlierDetection>,
    /// Service, subset and policies behind it.
    pub origins: Origins,
}

/// Endpoints that come and go together: those of one slice.
#[derive(Debug, Default)]
pub struct EndpointChunk {
    /// Sorted, each address and port once.
    pub endpoints: Vec<EndpointAddress>,
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
}

/// The endpoints of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Cluster they belong to.
    pub cluster: Arc<str>,
    /// In the order of slices; each address and port once in all of them together.
    pub chunks: Vec<Arc<EndpointChunk>>,
    /// The service.
    pub origins: Origins,
}

// === impl EndpointChunk ===

impl EndpointChunk {
    /// A chunk of these endpoints.
    pub fn new(endpoints: Vec<EndpointAddress>) -> Self {
        Self { endpoints, memo: OnceLock::new() }
    }
}

impl PartialEq for EndpointChunk {
    fn eq(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints
    }
}

impl Eq for EndpointChunk {}
