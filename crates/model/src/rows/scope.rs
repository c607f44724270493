//! What sidecars of some workloads may reach, and what may reach those workloads.
//!
//! **Invariant:** a pattern that could not be read is not here: it never widens a scope.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::gateway::HostPattern;
use super::policy::ConnectionPool;
use super::service::Protocol;

/// What becomes of requests to hosts that nothing declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutboundPolicy {
    /// They go where the client meant them to.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Hosts that workloads may reach by a port, or by all that have no listener of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EgressListener {
    /// The port. Shape: none = all others.
    pub port: Option<u16>,
    /// Hosts.
    pub hosts: Vec<HostPattern>,
    /// Hosts taken out of `hosts` again.
    pub excluded: Vec<HostPattern>,
    /// Address that the proxy opens the port on. Shape: none = it takes what is captured.
    pub bind: Option<IpAddr>,
}

/// Where a proxy hands over what came in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IngressTarget {
    /// To the address and port that it was meant for.
    #[default]
    Original,
    /// To the address that it was meant for, but to this port.
    Port(u16),
    /// To this address and port.
    Address(IpAddr, u16),
    /// To the Unix domain socket of this path.
    Socket(Arc<str>),
}

/// A port on which workloads take requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IngressListener {
    /// Field path of the listener.
    pub field: Arc<str>,
    /// Port that clients use.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Address that the proxy opens the port on, if it does. Shape: none = its own.
    pub bind: Option<IpAddr>,
    /// Whether the proxy opens the port; else it takes what is captured.
    pub opened: bool,
    /// Where to.
    pub to: IngressTarget,
    /// Limits. Shape: none = those of all ports.
    pub pool: Option<ConnectionPool>,
}

/// Hosts that workloads may reach, and ports on which they are. Source: a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SidecarScope {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Labels of the workloads; empty = all of the namespace.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Hosts that they may reach. Shape: none = all that they see.
    pub egress: Option<Vec<EgressListener>>,
    /// What becomes of requests to other hosts. Shape: none = as the mesh has it.
    pub outbound: Option<OutboundPolicy>,
    /// Ports on which they take requests; empty = those of the services that select them.
    pub ingress: Vec<IngressListener>,
    /// Limits of what comes in.
    pub inbound_pool: Option<ConnectionPool>,
}
