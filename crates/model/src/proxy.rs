//! Who asks: a proxy, as its node id and metadata describe it.
//!
//! In: node id, labels, Envoy version. Out: a typed value that groups are formed from.
//!
//! **Invariant:** nothing here is trusted for access; that comes from verified credentials.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::rows::Locality;

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Beside one workload.
    Sidecar,
    /// At an edge: a gateway.
    Router,
}

/// What the proxy's Envoy and its stream can do. The one table from versions to abilities is
/// `Capabilities::of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capabilities {
    /// Virtual hosts one by one (VHDS over ADS, bodies of first requests included).
    pub vhds: bool,
    /// Whether it holds a certificate of its workload, by the names that an agent gives it.
    pub mutual_tls: bool,
}

/// A version of Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvoyVersion {
    /// Major, so far always 1.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// Node id as it was sent.
    pub id: Arc<str>,
    /// What it does.
    pub role: Role,
    /// Its own address.
    pub address: Option<IpAddr>,
    /// Name of its workload.
    pub name: Arc<str>,
    /// Namespace of its workload.
    pub namespace: Arc<str>,
    /// Labels from node metadata; a workload row of its name takes precedence.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Whether the connections of its workload are captured.
    pub captures: bool,
    /// Where it runs, from node metadata; what is known of its workload takes precedence.
    pub locality: Locality,
}

/// Why a node id cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNodeId {
    id: String,
    why: &'static str,
}

// === impl Capabilities ===

impl Capabilities {
    /// What an Envoy of this version can do on a stream of this protocol. Without a version, or
    /// with one that is no Envoy's, the least is assumed. Certificates do not depend on it.
    pub fn of(version: Option<EnvoyVersion>, delta: bool) -> Self {
        let at_least = |minor| version.is_some_and(|v| v >= EnvoyVersion { major: 1, minor });
        Self { vhds: delta && at_least(40), mutual_tls: false }
    }
}

// === impl Proxy ===

impl Proxy {
    /// Read a node id such as `sidecar~10.0.0.7~app-0.ns~ns.svc.cluster.local` (gateways:
    /// `router~…`).
    ///
    /// Labels come from elsewhere; `fallback_namespace` (node metadata `NAMESPACE`) counts only
    /// where the id names none.
    pub fn parse(
        id: &str,
        fallback_namespace: Option<&str>,
        capabilities: Capabilities,
    ) -> Result<Self, BadNodeId> {
        let bad = |why| BadNodeId { id: id.chars().take(256).collect(), why };
        let parts: Vec<&str> = id.split('~').collect();
        let [role, address, workload, domain] = parts[..] else {
            return Err(bad("it must have four parts: role~IP~pod.namespace~namespace.svc.domain"));
        };
        let role = match role {
            "sidecar" => Role::Sidecar,
            "router" => Role::Router,
            _ => return Err(bad("its role must be sidecar or router")),
        };
        let (name, namespace) = match workload.rsplit_once('.') {
            Some((name, namespace)) => (name, namespace),
            None => {
                let from_domain = domain.split_once('.').map(|(ns, _)| ns).filter(|n| *n != "svc");
                let Some(namespace) = from_domain.or(fallback_namespace) else {
                    return Err(bad("it names no namespace"));
                };
                (workload, namespace)
            }
        };
        if name.is_empty() || namespace.is_empty() {
            return Err(bad("its pod and namespace must not be empty"));
        }
        Ok(Self {
            id: Arc::from(id),
            role,
            address: address.parse().ok(),
            name: Arc::from(name),
            namespace: Arc::from(namespace),
            labels: BTreeMap::new(),
            capabilities,
            captures: true,
            locality: Locality::default(),
        })
    }
}

// === impl BadNodeId ===

impl fmt::Display for BadNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node id {:?} is not usable: {}", self.id, self.why)
    }
}

impl std::error::Error for BadNodeId {}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Capabilities = Capabilities { vhds: true, mutual_tls: false };

    #[test]
    fn a_node_id_gives_role_name_and_namespace() {
        let proxy = Proxy::parse("router~10.0.0.7~gw-0.edge~edge.svc.cluster.local", None, FULL)
            .expect("valid");
        assert_eq!((proxy.role, &*proxy.name, &*proxy.namespace), (Role::Router, "gw-0", "edge"));
        assert_eq!(proxy.address, Some(IpAddr::from([10, 0, 0, 7])));
    }

    #[test]
    fn a_node_id_that_is_none_says_why() {
        for (id, why) in [
            ("", "four parts"),
            ("gateway", "four parts"),
            ("proxy~1.1.1.1~a.b~b.svc", "role must be"),
            ("router~1.1.1.1~gw~", "no namespace"),
            ("router~1.1.1.1~.b~b.svc", "must not be empty"),
        ] {
            let error = Proxy::parse(id, None, FULL).expect_err(id).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_a_delta_stream_of_envoy_1_40_gets_virtual_hosts_one_by_one() {
        let v = |minor| Some(EnvoyVersion { major: 1, minor });
        assert!(Capabilities::of(v(40), true).vhds);
        assert!(!Capabilities::of(v(39), true).vhds);
        assert!(!Capabilities::of(v(40), false).vhds);
        assert!(!Capabilities::of(None, true).vhds);
    }
}
