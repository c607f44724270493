//! Rules: which requests go where.
//!
//! **Invariant:** hosts are full; every number is within the bounds that Envoy accepts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::visibility::Visibility;

/// A text to compare with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StringMatch {
    /// Anything, as long as it is there.
    Present,
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// The whole value matches this RE2 expression.
    Regex(Arc<str>),
}

/// What a header must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderMatch {
    /// Name in lower case; pseudo-headers (`:method`) included.
    pub name: Arc<str>,
    /// Its value.
    pub value: StringMatch,
    /// Whether it must *not* be so; a header that is not there counts as empty.
    pub invert: bool,
}

/// What a query parameter must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryMatch {
    /// Name.
    pub name: Arc<str>,
    /// Its value.
    pub value: StringMatch,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpMatch {
    /// Field path of the condition; the rule's own where it has none.
    pub field: Arc<str>,
    /// Name of the condition.
    pub name: Option<Arc<str>>,
    /// Path without query. Shape: none = any.
    pub path: Option<StringMatch>,
    /// Whether the path is compared without regard to case (exact and prefix only).
    pub ignore_path_case: bool,
    /// Headers, sorted by name.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, sorted by name.
    pub query: Vec<QueryMatch>,
    /// Port that the request came in on, as the gateway or service declares it.
    pub port: Option<u16>,
    /// Whose requests.
    pub source: Source,
}

/// Proxies for whose requests a condition can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Gateways through which they are bound; none = all that the rule list is bound to.
    pub gateways: Vec<GatewayName>,
    /// Namespace.
    pub namespace: Option<Arc<str>>,
    /// Labels of the workload; never of a gateway.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// Conditions on a connection that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpMatch {
    /// Port that the connection was meant for.
    pub port: Option<u16>,
    /// Blocks that the address lies in that it was meant for; empty = any.
    pub destinations: Vec<IpNet>,
    /// Block that its client's address lies in.
    pub client: Option<IpNet>,
    /// Whose connections.
    pub source: Source,
}

/// Conditions on a TLS connection that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsMatch {
    /// Names, or patterns such as `*.a.com`, one of which its client asks for; at least one.
    pub server_names: Vec<Arc<str>>,
    /// The others.
    pub connection: TcpMatch,
}

/// One rule for TLS connections that are forwarded as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsRule {
    /// Field path of the rule in its object.
    pub field: Arc<str>,
    /// Conditions, any of which suffices; at least one.
    pub matches: Vec<TlsMatch>,
    /// The split; at least one.
    pub destinations: Vec<WeightedDestination>,
}

/// One rule for connections: any of the conditions, then the split.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpRule {
    /// Field path of the rule in its object.
    pub field: Arc<str>,
    /// Conditions, any of which suffices; empty = every connection.
    pub matches: Vec<TcpMatch>,
    /// The split; at least one.
    pub destinations: Vec<WeightedDestination>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Full host of a service.
    pub host: Arc<str>,
    /// Named subset of it.
    pub subset: Option<Arc<str>>,
    /// Service port. Shape: none = the only port, else the port of the request.
    pub port: Option<u16>,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightedDestination {
    /// Field path of the route entry.
    pub field: Arc<str>,
    /// Where to.
    pub destination: Destination,
    /// Share relative to the sum; never all zero within a rule.
    pub weight: u32,
}

/// Change of the path before forwarding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UriRewrite {
    /// Replace what the match named: the prefix, or the whole path.
    Matched(Arc<str>),
    /// Replace by regular expression (RE2), with `\1` in the substitution.
    Regex {
        /// What to find.
        pattern: Arc<str>,
        /// What to put there.
        substitution: Arc<str>,
    },
}

/// Changes of the request line before forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rewrite {
    /// Change of the path.
    pub uri: Option<UriRewrite>,
    /// New `Host`.
    pub authority: Option<Arc<str>>,
}

/// Pause between tries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetryBackOff {
    /// First pause; doubles up to ten times itself.
    pub base: Duration,
}

/// When and how often to try again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetryPolicy {
    /// Retries beside the first try; 0 = none.
    pub attempts: u32,
    /// Bound on each try. Shape: none = that of the request.
    pub per_try_timeout: Option<Duration>,
    /// Conditions in Envoy's words, in order, without status codes.
    pub retry_on: Vec<Arc<str>>,
    /// Status codes that count as failures, sorted.
    pub retriable_status_codes: Vec<u16>,
    /// Whether later tries avoid hosts that were tried.
    pub avoid_previous_hosts: bool,
    /// Whether later tries may go to other localities.
    pub remote_localities: bool,
    /// Pause between tries. Shape: none = Envoy's own 25 ms.
    pub back_off: Option<RetryBackOff>,
}

/// Forward to one or several destinations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The split; at least one.
    pub destinations: Vec<WeightedDestination>,
    /// Changes of the request line.
    pub rewrite: Rewrite,
    /// Bound on the whole request. Shape: none = unbounded.
    pub timeout: Option<Duration>,
    /// Retries. Shape: none = the mesh's default.
    pub retries: Option<RetryPolicy>,
}

/// Port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRedirect {
    /// The default of the protocol: no port in the URL.
    ProtocolDefault,
    /// The port of the request.
    Request,
    /// This one.
    Number(u16),
}

/// Answer with a redirect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// New path.
    pub uri: Option<Arc<str>>,
    /// Replacement of the matched prefix; excludes `uri`.
    pub prefix_rewrite: Option<Arc<str>>,
    /// New host.
    pub authority: Option<Arc<str>>,
    /// New port. Shape: none = as in the request.
    pub port: Option<PortRedirect>,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// Status: 301, 302, 303, 307 or 308.
    pub code: u16,
}

/// What to do with a request that matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HttpAction {
    /// Forward it.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer.
    Respond {
        /// Status, 200 to 599.
        status: u16,
        /// Body, if any.
        body: Option<Arc<str>>,
    },
}

/// One rule: any of the conditions, then the action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpRule {
    /// Field path of the rule in its object.
    pub field: Arc<str>,
    /// Name of the rule.
    pub name: Option<Arc<str>>,
    /// Conditions, any of which suffices; empty = every request.
    pub matches: Vec<HttpMatch>,
    /// What to do.
    pub action: HttpAction,
}

/// What a rule list is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayName {
    /// Every sidecar.
    Mesh,
    /// A gateway.
    Gateway {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

/// A list of rules for some hosts. Source: a VirtualService.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteRules {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Full hosts, `*.suffix` or `*`, in declared order.
    pub hosts: Vec<Arc<str>>,
    /// Where they apply, in declared order.
    pub gateways: Vec<GatewayName>,
    /// Namespaces whose proxies apply them. Shape: none = as the mesh has it.
    pub export_to: Option<Visibility>,
    /// HTTP rules in the order in which they are tried.
    pub http: Vec<HttpRule>,
    /// Rules for TLS connections, in the order in which they are tried.
    pub tls: Vec<TlsRule>,
    /// Rules for connections that are neither, in the order in which they are tried.
    pub tcp: Vec<TcpRule>,
}

// === impl RetryPolicy ===

impl Default for RetryPolicy {
    /// What Istio users get without asking.
    fn default() -> Self {
        let on = [
            "connect-failure",
            "refused-stream",
            "unavailable",
            "cancelled",
            "retriable-status-codes",
        ];
        Self {
            attempts: 2,
            per_try_timeout: None,
            retry_on: on.into_iter().map(Arc::from).collect(),
            retriable_status_codes: vec![503],
            avoid_previous_hosts: true,
            remote_localities: false,
            back_off: None,
        }
    }
}

// === impl RouteRules ===

impl RouteRules {
    /// What its conditions say of who asks.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let http = self.http.iter().flat_map(|rule| &rule.matches).map(|m| &m.source);
        let tls = self.tls.iter().flat_map(|rule| &rule.matches).map(|m| &m.connection.source);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.matches).map(|m| &m.source);
        http.chain(tls).chain(tcp)
    }
}
