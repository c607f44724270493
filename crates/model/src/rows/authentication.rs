//! Who must prove who they are: what workloads demand of clients, and how clients secure
//! connections.
//!
//! **Invariant:** what could not be read closes; it never comes to plain text.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a workload takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerMode {
    /// Plain text alone.
    Disable,
    /// Mutual TLS of the mesh, and everything else.
    #[default]
    Permissive,
    /// Mutual TLS of the mesh alone.
    Strict,
}

/// What some workloads take. Source: a PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerPolicy {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Creation time in seconds since the epoch; none for files.
    pub created: Option<i64>,
    /// Labels of the workloads; empty = all of the namespace, and of the mesh for one of the root
    /// namespace.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// On all ports. Shape: none = as the policy above it says.
    pub mode: Option<PeerMode>,
    /// On these ports of the workload.
    pub ports: BTreeMap<u16, PeerMode>,
}

/// How connections to a destination are secured. Source: `tls` of a DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientTls {
    /// Not at all.
    Disable,
    /// By mutual TLS of the mesh.
    Mesh {
        /// Name to ask for. Shape: none = that of the cluster.
        sni: Option<Arc<str>>,
        /// Names one of which the server must prove; empty = those of its endpoints' accounts.
        names: Vec<Arc<str>>,
    },
    /// By TLS that the destination terminates as it likes.
    Origin(Arc<OriginTls>),
    /// It could not be read: there are no connections.
    Refused,
}

/// TLS to servers that are not of the mesh. Files are those of the proxy's own file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginTls {
    /// Files with the client's chain and key.
    pub certificate: Option<(Arc<str>, Arc<str>)>,
    /// File with roots. Shape: none = those of the system.
    pub roots: Option<Arc<str>>,
    /// Name to ask for. Shape: none = the host of the request.
    pub sni: Option<Arc<str>>,
    /// Names one of which the server must prove; empty = the name that is asked for.
    pub names: Vec<Arc<str>>,
    /// Whether nothing need be proved.
    pub trusts_anybody: bool,
}

/// Value of the label `TLS_MODE_LABEL` of workloads that take mutual TLS of the mesh.
pub const TLS_MODE: &str = "istio";
/// Label of workloads that says whether they take mutual TLS of the mesh.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// An account as identities name it: `ns/<namespace>/sa/<account>`.
pub fn account(namespace: &str, name: &str) -> Arc<str> {
    Arc::from(format!("ns/{namespace}/sa/{name}"))
}

/// Whether a workload with these labels has a proxy that takes mutual TLS of the mesh.
pub fn takes_mutual_tls(labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
    labels.get(TLS_MODE_LABEL).is_some_and(|mode| &**mode == TLS_MODE)
}
