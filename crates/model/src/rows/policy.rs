//! How to talk to a destination: its subsets, load balancing, limits.
//!
//! **Invariant:** numbers are within Envoy's bounds; none of them is a default of Envoy's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::authentication::ClientTls;
use super::visibility::Visibility;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LbAlgorithm {
    /// The less loaded of two.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// By a hash, on a ring.
    RingHash {
        /// Least number of points on the ring; at most 8,388,608.
        least: u32,
    },
    /// By a hash, in a table.
    Maglev {
        /// Size of the table: a prime up to 5,000,011.
        size: u32,
    },
}

/// What requests have in common that are to go to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashKey {
    /// A header of this name.
    Header(Arc<str>),
    /// A cookie; given to clients without one where it has a life.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// Path for which it is given.
        path: Option<Arc<str>>,
        /// Its life; zero = as long as the client's session. Shape: none = it is never given.
        ttl: Option<Duration>,
        /// Other attributes, with their values.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// The address of the client.
    SourceIp,
    /// A query parameter of this name.
    Query(Arc<str>),
}

/// Shares of places, by pattern; those that say more first.
pub type PlaceShares = Vec<(Arc<str>, u32)>;

/// How much it matters where a client and an endpoint run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalityBalance {
    /// Whether it does.
    pub enabled: bool,
    /// Shares of places, by the place of the client: patterns such as `region/zone/*`. The first
    /// that covers the client's place is in force.
    pub distribute: Vec<(Arc<str>, PlaceShares)>,
    /// Region of the client → region to use when its own has no healthy endpoints.
    pub failover: Vec<(Arc<str>, Arc<str>)>,
    /// Labels in which endpoints agree with the client, most important first: the more of them
    /// agree from the first on, the earlier an endpoint is used. With the value that an endpoint
    /// must have; none = that of the client. Empty = places decide.
    pub priority: Vec<(Arc<str>, Option<Arc<str>>)>,
}

/// How an endpoint is chosen, and by what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadBalancer {
    /// How.
    pub algorithm: LbAlgorithm,
    /// By what, where it is by a hash.
    pub hash: Option<HashKey>,
    /// How much places matter. Shape: none = as the mesh has it.
    pub locality: Option<Arc<LocalityBalance>>,
}

/// Whether connections are upgraded to HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpgradePolicy {
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}

/// Probes on idle TCP connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpKeepAlive {
    /// Unanswered probes that end it.
    pub probes: Option<u32>,
    /// Idle time before the first; whole seconds.
    pub time: Option<Duration>,
    /// Time between them; whole seconds.
    pub interval: Option<Duration>,
}

/// PINGs on HTTP/2 connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Http2KeepAlive {
    /// Time between PINGs.
    pub interval: Duration,
    /// Time to wait for the answer.
    pub timeout: Duration,
}

/// Limits of TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpPool {
    /// Connections to all endpoints together.
    pub max_connections: Option<u32>,
    /// Time to open one.
    pub connect_timeout: Option<Duration>,
    /// Probes.
    pub keep_alive: Option<TcpKeepAlive>,
    /// Life of one.
    pub max_connection_duration: Option<Duration>,
    /// Time without traffic that ends a TCP proxy connection.
    pub idle_timeout: Option<Duration>,
}

/// Limits of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpPool {
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests on one connection; none or 0 = unbounded.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// Time without requests that closes a connection.
    pub idle_timeout: Option<Duration>,
    /// Whether to upgrade to HTTP/2. Shape: none = by the port's protocol.
    pub upgrade: Option<UpgradePolicy>,
    /// Whether to speak what the client speaks.
    pub use_client_protocol: bool,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// PINGs.
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionPool {
    /// Of TCP.
    pub tcp: TcpPool,
    /// Of HTTP.
    pub http: HttpPool,
}

/// When an endpoint is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutlierDetection {
    /// 5xx answers in a row; 0 = never for that.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 in a row; 0 = never for that.
    pub consecutive_gateway: Option<u32>,
    /// Failures to connect in a row.
    pub consecutive_local_origin: Option<u32>,
    /// Whether failures to connect are counted apart.
    pub split_local_origin: bool,
    /// Time between sweeps.
    pub interval: Option<Duration>,
    /// How long at first.
    pub base_ejection_time: Option<Duration>,
    /// Share that may be set aside; percent.
    pub max_ejection_percent: Option<u32>,
    /// Share of healthy endpoints below which health is ignored; percent.
    pub min_health_percent: Option<u32>,
    /// Status codes that count as errors instead of 5xx, sorted.
    pub error_codes: Vec<u16>,
}

/// How to talk to a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficPolicy {
    /// Load balancing.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Setting endpoints aside.
    pub outlier_detection: Option<OutlierDetection>,
    /// How connections are secured. Shape: none = by mutual TLS where the endpoint takes it.
    pub tls: Option<ClientTls>,
    /// What holds for a port of the service instead of all of the above.
    pub ports: BTreeMap<u16, TrafficPolicy>,
}

/// A named part of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subset {
    /// Field path of the subset.
    pub field: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Labels of its workloads; empty = all.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// What differs from the policy of the whole.
    pub policy: TrafficPolicy,
}

/// How to talk to a host. Source: a DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationPolicy {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Full host, `*.suffix` or `*`.
    pub host: Arc<str>,
    /// Namespaces whose clients it applies to. Shape: none = as the mesh has it.
    pub export_to: Option<Visibility>,
    /// Field path of the policy.
    pub field: Arc<str>,
    /// The policy of the whole.
    pub policy: TrafficPolicy,
    /// Its parts.
    pub subsets: Vec<Subset>,
}

// === impl TrafficPolicy ===

impl TrafficPolicy {
    /// What holds for a port: what is said of it, else what is said of all.
    #[must_use]
    pub fn of_port(&self, port: u16) -> Self {
        let of_all = || Self { ports: BTreeMap::new(), ..self.clone() };
        self.ports.get(&port).cloned().unwrap_or_else(of_all)
    }

    /// What holds for a port of a part of the whole that this policy is of: each thing that the
    /// policy of the part says replaces that of the whole.
    #[must_use]
    pub fn of_part(&self, part: &Self, port: u16) -> Self {
        if let Some(own) = part.ports.get(&port) {
            return own.clone();
        }
        let Self { load_balancer, connection_pool, outlier_detection, tls, ports: _ } =
            part.clone();
        let whole = self.of_port(port);
        Self {
            load_balancer: load_balancer.or(whole.load_balancer),
            connection_pool: connection_pool.or(whole.connection_pool),
            outlier_detection: outlier_detection.or(whole.outlier_detection),
            tls: tls.or(whole.tls),
            ports: BTreeMap::new(),
        }
    }
}

// === impl LoadBalancer ===

impl From<LbAlgorithm> for LoadBalancer {
    fn from(algorithm: LbAlgorithm) -> Self {
        Self { algorithm, hash: None, locality: None }
    }
}

// === impl LocalityBalance ===

impl Default for LocalityBalance {
    fn default() -> Self {
        let priority = Vec::new();
        Self { enabled: true, distribute: Vec::new(), failover: Vec::new(), priority }
    }
}

// === impl DestinationPolicy ===

impl DestinationPolicy {
    /// Labels in which it asks whether endpoints agree with clients.
    pub fn asked_labels(&self) -> impl Iterator<Item = &Arc<str>> {
        let parts = std::iter::once(&self.policy).chain(self.subsets.iter().map(|s| &s.policy));
        let all = parts.flat_map(|policy| std::iter::once(policy).chain(policy.ports.values()));
        let balances = all.filter_map(|policy| policy.load_balancer.as_ref()?.locality.as_ref());
        balances.flat_map(|balance| balance.priority.iter().map(|(key, _)| key))
    }

    /// Whether it may matter for clients where they run.
    pub fn may_prefer_places(&self) -> bool {
        let matters = |policy: &TrafficPolicy| {
            policy.outlier_detection.is_some()
                || policy.load_balancer.as_ref().is_some_and(|lb| lb.locality.is_some())
        };
        let any = |policy: &TrafficPolicy| matters(policy) || policy.ports.values().any(matters);
        any(&self.policy) || self.subsets.iter().any(|subset| any(&subset.policy))
    }
}
