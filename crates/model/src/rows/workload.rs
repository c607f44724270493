//! Workloads, the namespaces they live in and the nodes they run on.
//!
//! **Invariant:** only what routing reads of a Pod is here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::service::Declared;

/// A running instance: a Pod, or a WorkloadEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name, unique in its namespace.
    pub name: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Addresses; empty until it has one.
    pub addresses: Vec<IpAddr>,
    /// Identity it runs as; `default` when none is named.
    pub service_account: Arc<str>,
    /// Its ports that have a name.
    pub named_ports: BTreeMap<Arc<str>, u16>,
    /// Ports on which its proxy, if it has one, takes connections for it.
    pub captured: CapturedPorts,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Whether it takes requests.
    pub ready: bool,
    /// What its user says of it. Shape: none = it is a Pod.
    pub declared: Option<Arc<Declared>>,
}

/// Ports on which a proxy takes the connections to its workload; on others the workload itself
/// does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CapturedPorts {
    /// These. Shape: none = all.
    pub only: Option<BTreeSet<u16>>,
    /// But for these.
    pub never: BTreeSet<u16>,
}

/// Where something runs; empty parts are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Part of a zone.
    pub subzone: Arc<str>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Where it is.
    pub locality: Locality,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

// === impl CapturedPorts ===

impl CapturedPorts {
    /// Whether the proxy takes connections to a port.
    pub fn contain(&self, port: u16) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&port)) && !self.never.contains(&port)
    }
}

// === impl Locality ===

impl Locality {
    /// Read `region/zone/subzone`, of which the last may be missing.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/');
        let mut part = || Arc::from(parts.next().unwrap_or_default());
        Self { region: part(), zone: part(), subzone: part() }
    }
}
