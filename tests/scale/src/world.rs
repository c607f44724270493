//! The mesh that is served, W(s, e): s services in s/10 namespaces, e endpoints each, every fourth
//! with a VirtualService; and the changes to it.
//!
//! In: sizes. Out: files of YAML, nodes of proxies, and what a proxy must hold in the end.
//!
//! Each change carries its number to where a proxy sees it: as the port of the first endpoint of a
//! service, or as a weight.
//!
//! **Invariant:** pure; the same sizes give the same world.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use envoy_api::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_api::envoy::config::core::v3::{BuildVersion, Extension, Node};
use envoy_api::envoy::r#type::v3::SemanticVersion;
use prost::Message as _;
use serde_json::{Map, json};
use xxhash_rust::xxh3::xxh3_64;

const PORT: u32 = 8080;
/// The port of a moving endpoint is this and the number of the change.
const MOVED: u32 = 20_000;
/// Extensions that a stock Envoy lists in its node: 61 KB.
const EXTENSIONS: usize = 480;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    /// The first endpoint of this service.
    Endpoint(u32),
    /// The split of this service, every fourth.
    Weight(u32),
}

/// A change: the state of its subject from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Change {
    pub(crate) subject: Subject,
    /// Its number; only grows. Weights: 1 to 99.
    pub(crate) step: u32,
}

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
    /// Whether Sidecar objects let each namespace see five services of its own alone.
    pub(crate) narrowed: bool,
}

/// The change that the port of an endpoint shows.
pub(crate) fn moved(cluster: &str, port: u32) -> Option<Change> {
    let step = port.checked_sub(MOVED)?;
    Some(Change { subject: Subject::Endpoint(number(cluster)?), step })
}

/// The change that the weight of the first cluster of a split shows.
pub(crate) fn weighed(cluster: &str, weight: u32) -> Option<Change> {
    Some(Change { subject: Subject::Weight(number(cluster)?), step: weight })
}

/// The number of the service that a cluster is named for.
pub(crate) fn number(cluster: &str) -> Option<u32> {
    let (_, after) = cluster.split_once("|service-")?;
    after.split('.').next()?.parse().ok()
}

// === impl Change ===

impl Change {
    pub(crate) fn port(self) -> u32 {
        MOVED + self.step
    }

    pub(crate) fn weights(self) -> [u32; 2] {
        [self.step, 100 - self.step]
    }

    /// The file that shows it, and its text.
    pub(crate) fn file(self, world: &World) -> (String, String) {
        match self.subject {
            Subject::Endpoint(service) => {
                let address = World::address(world.endpoint(service, 0));
                let slice = slice(service, "moving", self.port(), &[address]);
                (format!("moving-{service}.yaml"), slice)
            }
            Subject::Weight(service) => {
                let [first, second] = self.weights();
                let (namespace, name) = (World::namespace(service), format!("service-{service}"));
                let other = format!("service-{}.{}", service + 1, World::namespace(service + 1));
                let text = format!(
                    "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                     metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
                     hosts: [{name}.{namespace}.svc.cluster.local]\n  http:\n  - route:\n    \
                     - {{destination: {{host: {name}.{namespace}.svc.cluster.local}}, weight: {first}}}\n    \
                     - {{destination: {{host: {other}.svc.cluster.local}}, weight: {second}}}\n"
                );
                (format!("rules-{service}.yaml"), text)
            }
        }
    }
}

fn slice(service: u32, part: &str, port: u32, addresses: &[Ipv4Addr]) -> String {
    let namespace = World::namespace(service);
    let mut out = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: service-{service}-{part}, namespace: {namespace}, \
         labels: {{kubernetes.io/service-name: service-{service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints:\n"
    );
    for address in addresses {
        let _ = writeln!(out, "- {{addresses: [{address}], conditions: {{ready: true}}}}");
    }
    out
}

// === impl World ===

impl World {
    pub(crate) fn new(services: u32, endpoints: u32) -> Self {
        Self { services, endpoints, narrowed: false }
    }

    fn namespace(service: u32) -> String {
        format!("ns-{}", service / 10)
    }

    /// Number of an endpoint among all.
    fn endpoint(&self, service: u32, index: u32) -> u32 {
        service * self.endpoints + index
    }

    fn address(endpoint: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + endpoint)
    }

    /// Services that have a split.
    pub(crate) fn split(&self) -> impl Iterator<Item = u32> + use<> {
        (0..self.services - 1).step_by(4)
    }

    /// The state in which it begins, as changes.
    pub(crate) fn first(&self) -> impl Iterator<Item = Change> + use<> {
        let moving = (0..self.services).map(|s| Change { subject: Subject::Endpoint(s), step: 0 });
        moving.chain(self.split().map(|s| Change { subject: Subject::Weight(s), step: 1 }))
    }

    /// Every file, by its name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (String, String)> {
        let services = (0..self.services)
            .map(|service| (format!("service-{service}.yaml"), self.service(service)));
        let narrowed = (0..self.services).step_by(10).filter(|_| self.narrowed);
        let narrowed = narrowed.map(|service| {
            let namespace = Self::namespace(service);
            let hosts: Vec<_> = (service..service + 5)
                .map(|s| format!("./service-{s}.{namespace}.svc.cluster.local"))
                .collect();
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                 metadata: {{name: default, namespace: {namespace}}}\n\
                 spec: {{egress: [{{hosts: [{}]}}]}}\n",
                hosts.join(", ")
            );
            (format!("sidecar-{namespace}.yaml"), text)
        });
        services.chain(narrowed).chain(self.first().map(|change| change.file(self)))
    }

    /// A Service, its endpoints but the moving one, and a Pod for each.
    fn service(&self, service: u32) -> String {
        let namespace = Self::namespace(service);
        let cluster_ip = Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + service);
        let all: Vec<_> =
            (0..self.endpoints).map(|e| Self::address(self.endpoint(service, e))).collect();
        let mut out = format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: service-{service}, namespace: {namespace}}}\n\
             spec: {{clusterIP: {cluster_ip}, selector: {{app: service-{service}}}, \
             ports: [{{name: http, port: 80, targetPort: {PORT}}}]}}\n---\n"
        );
        out += &slice(service, "fixed", PORT, &all[1..]);
        for (index, address) in all.iter().enumerate() {
            let _ = write!(
                out,
                "---\napiVersion: v1\nkind: Pod\n\
                 metadata: {{name: service-{service}-{index}, namespace: {namespace}, \
                 labels: {{app: service-{service}, security.istio.io/tlsMode: istio}}}}\n\
                 spec: {{serviceAccountName: default}}\nstatus: {{podIP: {address}}}\n"
            );
        }
        out
    }

    /// Number of the endpoints of each service, and the sum of the hashes of their addresses.
    pub(crate) fn endpoints_of(&self, service: u32) -> (u32, u64) {
        let addresses = (0..self.endpoints).map(|e| Self::address(self.endpoint(service, e)));
        let hashes = addresses.map(|address| xxh3_64(address.to_string().as_bytes()));
        (self.endpoints, hashes.fold(0, u64::wrapping_add))
    }

    /// Name of the cluster of a service, and of its endpoints.
    pub(crate) fn cluster(service: u32) -> String {
        format!("outbound|80||service-{service}.{}.svc.cluster.local", Self::namespace(service))
    }

    /// Whether a proxy is to be told of a service.
    pub(crate) fn is_visible(&self, service: u32, proxy: u32) -> bool {
        let own = proxy % self.services;
        !self.narrowed || (service / 10 == own / 10 && service % 10 < 5)
    }

    /// Namespace of a proxy.
    pub(crate) fn namespace_of(&self, proxy: u32) -> String {
        Self::namespace(proxy % self.services)
    }

    /// What the proxy's Envoy says of itself: the proxies go round the services, each at an endpoint
    /// while there are enough; the encoded node without its list of extensions.
    pub(crate) fn node(&self, proxy: u32, tls: bool) -> Vec<u8> {
        let (service, index) = (proxy % self.services, 1 + proxy / self.services);
        let address = if index < self.endpoints {
            Self::address(self.endpoint(service, index))
        } else {
            Self::address(self.services * self.endpoints + proxy)
        };
        let namespace = Self::namespace(service);
        let metadata = json!({
            "NAMESPACE": namespace, "SERVICE_ACCOUNT": "default", "CLUSTER_ID": "Kubernetes",
            "LABELS": {"app": format!("service-{service}"), "security.istio.io/tlsMode": "istio"},
            "SDS": tls, "INTERCEPTION_MODE": "REDIRECT",
        });
        let metadata = metadata.as_object().cloned().unwrap_or_else(Map::new);
        let version = SemanticVersion { major_number: 1, minor_number: 40, patch: 0 };
        let node = Node {
            id: format!(
                "sidecar~{address}~service-{service}-{proxy}.{namespace}~{namespace}.svc.cluster.local"
            ),
            cluster: format!("service-{service}.{namespace}"),
            metadata: Some(envoy_api::json::to_struct(&metadata)),
            user_agent_name: "envoy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(
                BuildVersion { version: Some(version), metadata: None },
            )),
            ..Default::default()
        };
        node.encode_to_vec()
    }
}

/// The list of extensions that a stock Envoy puts into each node, as long as its own; every third
/// has types too.
pub(crate) fn extensions() -> Vec<u8> {
    let extensions = (0..EXTENSIONS).map(|n| Extension {
        name: format!("envoy.filters.http.some_extension_{n}"),
        category: "envoy.filters.http".to_owned(),
        type_urls: vec![format!("envoy.extensions.filters.http.some_extension_{n}.v3.Config")],
        ..Default::default()
    });
    Node { extensions: extensions.collect(), ..Default::default() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_by_what_it_made() {
        let cluster = "outbound|80||service-12.ns-1.svc.cluster.local";
        let change = Change { subject: Subject::Endpoint(12), step: 7 };
        assert_eq!(moved(cluster, change.port()), Some(change));
        assert_eq!(moved(cluster, PORT), None);
        let change = Change { subject: Subject::Weight(12), step: 7 };
        assert_eq!(weighed(cluster, change.weights()[0]), Some(change));
        assert_eq!(number("inbound|8080||"), None);
    }

    #[test]
    fn a_node_is_as_long_as_that_of_an_envoy() {
        let node = extensions().len() + World::new(10, 10).node(3, true).len();
        assert!((58_000..64_000).contains(&node), "{node} bytes");
    }
}
