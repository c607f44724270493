//! Gateways: ports that gateway proxies open, and the hosts that they accept.
//!
//! **Invariant:** only servers that can be served are here; others were refused when lowered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Namespaces whose rules may use a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostScope {
    /// Rules of every namespace.
    Any,
    /// Rules of this namespace only.
    Namespace(Arc<str>),
}

/// A host that a server accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern {
    /// Whose rules may use it.
    pub scope: HostScope,
    /// Full host, `*.suffix` or `*`.
    pub host: Arc<str>,
}

/// One HTTP port of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// Field path of the server in its object.
    pub field: Arc<str>,
    /// Port number as declared; a Service in front may map it to another.
    pub port: u16,
    /// Address to listen on. Shape: none = all.
    pub bind: Option<IpAddr>,
    /// Hosts it accepts.
    pub hosts: Vec<HostPattern>,
}

/// A gateway: which proxies, which servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name, by which rules bind to it.
    pub name: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Labels of the gateway proxies; empty = all of them.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Its HTTP servers, in declared order.
    pub servers: Vec<Server>,
}

// === impl HostPattern ===

impl HostPattern {
    /// Whether objects of a namespace may use the host.
    pub fn admits(&self, namespace: &str) -> bool {
        match &self.scope {
            HostScope::Any => true,
            HostScope::Namespace(own) => **own == *namespace,
        }
    }
}
