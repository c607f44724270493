//! What sidecars of some workloads may reach.
//!
//! **Invariant:** a pattern that could not be read is not here: it never widens a scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gateway::HostPattern;

/// What becomes of requests to hosts that nothing declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutboundPolicy {
    /// They go where the client meant them to.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Hosts that workloads may reach. Source: a Sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SidecarScope {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Labels of the workloads; empty = all of the namespace.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Hosts that they may reach. Shape: none = all that they see.
    pub egress: Option<Vec<HostPattern>>,
    /// Hosts taken out of `egress` again.
    pub excluded: Vec<HostPattern>,
    /// What becomes of requests to other hosts. Shape: none = as the mesh has it.
    pub outbound: Option<OutboundPolicy>,
}
