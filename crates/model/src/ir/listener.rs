//! Listeners.
//!
//! **Invariant:** what changes often stays out of here: a changed listener cuts connections.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::object::Origins;
use crate::rows::{PeerMode, Protocol};

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
    /// Gateway servers, services and rules behind it.
    pub origins: Origins,
}

/// Clusters and their shares, none of which is zero; at least one.
pub type Shares = Vec<(Arc<str>, u32)>;

/// Connections that are alike, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names one of which a TLS client asks for; empty = any, and no TLS as well.
    pub server_names: Vec<Arc<str>>,
    /// Blocks that the address lies in that it was meant for; empty = any.
    pub destinations: Vec<IpNet>,
    /// Blocks that the client's address lies in; empty = any.
    pub clients: Vec<IpNet>,
    /// Where they go.
    pub shares: Shares,
    /// Whether the client's address decides the endpoint.
    pub sticky: bool,
    /// Whether a server of one of the clusters finds out what is spoken: it must be told that this
    /// is no HTTP.
    pub sniffed: bool,
    /// Rule or service.
    pub origins: Origins,
}

/// How clients may come in. Neither = not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Takes {
    /// Without mutual TLS of the mesh.
    pub plain: bool,
    /// By mutual TLS of the mesh.
    pub mutual_tls: bool,
}

/// A port on which a workload takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// Port.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// How clients may come in.
    pub takes: Takes,
    /// The workload's cluster for it.
    pub cluster: Arc<str>,
    /// Service or Sidecar that declares it.
    pub origins: Origins,
}

/// Ports of a workload that nothing declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherPorts {
    /// Where their connections go.
    pub cluster: Arc<str>,
    /// How clients may come in.
    pub takes: Takes,
    /// How, on some of them, sorted.
    pub ports: Vec<(u16, Takes)>,
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
    /// What leaves a workload for a port, or for a port of an address.
    Outbound {
        /// Whether the proxy opens the port itself; else connections are handed over by the
        /// listener that captures.
        opened: bool,
        /// The RouteConfiguration that decides about HTTP. Shape: none = nothing is taken for
        /// HTTP.
        route_config: Option<Arc<str>>,
        /// Other connections, by what they are; no two chains meet.
        chains: Vec<Chain>,
        /// Where all others go.
        otherwise: Shares,
        /// Whether the client's address decides the endpoint of those.
        sticky: bool,
        /// As in a chain, of those.
        sniffed: bool,
    },
    /// Everything that comes in to a workload.
    Inbound {
        /// Whether the proxy opens the port for what is captured; else for one port.
        captured: bool,
        /// Domain of the identities that clients prove.
        trust_domain: Arc<str>,
        /// Ports of the workload, sorted by number.
        ports: Vec<InboundPort>,
        /// All others. Shape: none = they are closed.
        others: Option<OtherPorts>,
    },
}

// === impl Takes ===

impl Takes {
    /// What a policy comes to for a proxy that holds a certificate, or none.
    pub fn of(mode: PeerMode, certificate: bool) -> Self {
        Self {
            plain: mode != PeerMode::Strict,
            mutual_tls: certificate && mode != PeerMode::Disable,
        }
    }
}

// === impl Serves ===

impl Serves {
    /// The RouteConfiguration that it needs.
    pub fn route_config(&self) -> Option<&Arc<str>> {
        match self {
            Self::Edge { route_config } => Some(route_config),
            Self::Outbound { route_config, .. } => route_config.as_ref(),
            Self::Captured { .. } | Self::Inbound { .. } => None,
        }
    }

    /// The clusters that it names itself.
    pub fn clusters(&self) -> Vec<&Arc<str>> {
        match self {
            Self::Edge { .. } => Vec::new(),
            Self::Captured { otherwise } => vec![otherwise],
            Self::Outbound { chains, otherwise, .. } => {
                let shares = chains.iter().flat_map(|chain| &chain.shares).chain(otherwise);
                shares.map(|(name, _)| name).collect()
            }
            Self::Inbound { ports, others, .. } => {
                let others = others.iter().map(|others| &others.cluster);
                ports.iter().map(|port| &port.cluster).chain(others).collect()
            }
        }
    }
}
