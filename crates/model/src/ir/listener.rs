//! Listeners.
//!
//! **Invariant:** what changes often stays out of here: a changed listener cuts connections.

use std::net::IpAddr;
use std::sync::Arc;

use crate::object::Origins;

/// A port that the proxy opens, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Name.
    pub name: Arc<str>,
    /// Address. Shape: none = every address.
    pub bind: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// What is done with connections.
    pub serves: Serves,
    /// File of the access log. Shape: none = no log.
    pub access_log_file: Option<Arc<str>>,
    /// Gateway servers that open it.
    pub origins: Origins,
}

/// What a listener does with connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serves {
    /// HTTP that comes in at an edge.
    Edge {
        /// The RouteConfiguration that decides.
        route_config: Arc<str>,
    },
    /// Everything that leaves a workload: handed to the listener of its original destination,
    /// else to a cluster.
    Captured {
        /// The cluster.
        otherwise: Arc<str>,
    },
    /// Connections that leave a workload for an address of a service; they are handed over by the
    /// listener that captures.
    Tcp {
        /// Clusters and their shares, none of which is zero.
        clusters: Vec<(Arc<str>, u32)>,
    },
    /// What leaves a workload for a port; it is handed over by the listener that captures.
    Outbound {
        /// The RouteConfiguration that decides about HTTP.
        route_config: Arc<str>,
        /// The cluster for what is no HTTP.
        otherwise: Arc<str>,
    },
}

// === impl Serves ===

impl Serves {
    /// The RouteConfiguration that it needs.
    pub fn route_config(&self) -> Option<&Arc<str>> {
        match self {
            Self::Edge { route_config } | Self::Outbound { route_config, .. } => Some(route_config),
            Self::Captured { .. } | Self::Tcp { .. } => None,
        }
    }

    /// The clusters that it names itself.
    pub fn clusters(&self) -> Vec<&Arc<str>> {
        match self {
            Self::Edge { .. } => Vec::new(),
            Self::Captured { otherwise } | Self::Outbound { otherwise, .. } => vec![otherwise],
            Self::Tcp { clusters } => clusters.iter().map(|(name, _)| name).collect(),
        }
    }
}
