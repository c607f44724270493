//! Routes: of a port, of a host, of a request.
//!
//! **Invariant:** names clusters only by their wire name; every cluster named is in the same scope.

use std::sync::Arc;
use std::time::Duration;

use crate::object::Origins;
use crate::rows::{HashKey, HeaderMatch, PortRedirect, QueryMatch, RetryPolicy, Rewrite};

/// How the virtual hosts of a RouteConfiguration reach the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualHosts {
    /// One by one, by VHDS.
    Discovered,
    /// Within the RouteConfiguration, sorted by name.
    Inline(Vec<Arc<VirtualHost>>),
}

/// The routes of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfiguration {
    /// Name.
    pub name: Arc<str>,
    /// Its virtual hosts.
    pub virtual_hosts: VirtualHosts,
    /// Gateway servers or services that open the port.
    pub origins: Origins,
}

/// The routes of a host on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// RouteConfiguration it belongs to.
    pub route_config: Arc<str>,
    /// Name, of the VHDS resource as well.
    pub name: Arc<str>,
    /// Domains; none belongs to another host of the same RouteConfiguration.
    pub domains: Vec<Arc<str>>,
    /// Routes in the order in which they are tried; none = 404.
    pub routes: Vec<Route>,
    /// Whether requests are for the endpoint whose address the client used.
    pub pinned: bool,
    /// Rules and gateway servers behind it.
    pub origins: Origins,
}

/// A path to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    Any,
    /// Equal.
    Exact {
        /// The path.
        path: Arc<str>,
        /// Whether upper and lower case are the same.
        ignore_case: bool,
    },
    /// Starts with.
    Prefix {
        /// The beginning.
        prefix: Arc<str>,
        /// Whether upper and lower case are the same.
        ignore_case: bool,
    },
    /// The whole path matches this RE2 expression.
    Regex(Arc<str>),
}

/// Conditions of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Path.
    pub path: PathMatch,
    /// Headers, pseudo-headers included, sorted by name.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, sorted by name.
    pub query: Vec<QueryMatch>,
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// Share relative to the sum.
    pub weight: u32,
    /// The route entry.
    pub origins: Origins,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectTo {
    /// New path.
    pub path: Option<Arc<str>>,
    /// Replacement of the matched prefix.
    pub prefix_rewrite: Option<Arc<str>>,
    /// New host.
    pub host: Option<Arc<str>>,
    /// New port.
    pub port: Option<PortRedirect>,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// Status.
    pub code: u16,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward.
    Forward {
        /// The split; at least one.
        clusters: Vec<WeightedCluster>,
        /// Changes of the request line.
        rewrite: Rewrite,
        /// Bound on the request. Shape: none = unbounded.
        timeout: Option<Duration>,
        /// Retries; `attempts` 0 = none.
        retries: RetryPolicy,
        /// What decides the endpoint, sorted; for clusters that choose it by a hash.
        hash: Vec<HashKey>,
    },
    /// Redirect.
    Redirect(RedirectTo),
    /// Answer.
    Respond {
        /// Status.
        status: u16,
        /// Body, if any.
        body: Option<Arc<str>>,
    },
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name: that of the rule, with the condition's after a dot.
    pub name: Option<Arc<str>>,
    /// When.
    pub matcher: RouteMatch,
    /// What.
    pub action: Action,
    /// The rule.
    pub origins: Origins,
}

// === impl VirtualHost ===

impl VirtualHost {
    /// Every cluster that its routes name, in order of appearance.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.routes
            .iter()
            .flat_map(|route| match &route.action {
                Action::Forward { clusters, .. } => &clusters[..],
                Action::Redirect(_) | Action::Respond { .. } => &[],
            })
            .map(|c| &c.cluster)
    }
}
