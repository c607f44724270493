//! The kinds that users write, one row each.
//!
//! The watch list, the permissions, the CRDs and the documentation are all read from `KINDS`; a
//! new kind is a new row.
//!
//! **Invariant:** a kind knows nothing of any other; what lies between objects is for `model`.

use std::borrow::Cow;
use std::sync::Arc;

use model::{Change, Kind as KindName, ObjectRef, Problem, Reason};

use crate::head;
use crate::istio::{
    destination_rule, gateway, mesh_config, peer_authentication, service_entry, sidecar,
    virtual_service, workload_entry,
};
use crate::kubernetes::{endpoint_slice, endpoints, namespace, node, pod, service};
use crate::object::RawObject;
use crate::schema::{Type, nearest};

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindScope {
    /// They do.
    Namespaced,
    /// They do not.
    Cluster,
}

/// What we do with the objects of a kind.
pub trait Kind: Sync {
    /// What its `spec` may hold; none for kinds of Kubernetes itself, of which we read a part.
    fn spec(&self) -> Option<&'static Type> {
        None
    }

    /// Validate an object and turn it into rows of the model. What cannot be used is dropped and
    /// said in a problem.
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>);
}

/// A kind that users write, with its names in the API.
pub struct Known {
    /// What we do with it.
    pub kind: &'static dyn Kind,
    /// Whether it lives in namespaces.
    pub scope: KindScope,
    /// API group; empty for the core.
    pub group: &'static str,
    /// Kind, such as `VirtualService`.
    pub name: &'static str,
    /// Plural in URLs, such as `virtualservices`.
    pub plural: &'static str,
    /// Versions that mean the same, preferred first.
    pub versions: &'static [&'static str],
    /// Whether an API server holds objects of this kind.
    pub in_api: bool,
    /// Short name for `kubectl get`; empty where it has none.
    pub short_name: &'static str,
    /// What `kubectl get` shows beside name, acceptance and age: header and path.
    pub columns: &'static [(&'static str, &'static str)],
}

const ISTIO: &str = "networking.istio.io";
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// Every kind we read.
pub const KINDS: &[Known] = &[
    Known::of(&namespace::Namespace, "", "Namespace", "namespaces", &["v1"]).in_cluster(),
    Known::of(&node::Node, "", "Node", "nodes", &["v1"]).in_cluster(),
    Known::of(&service::Service, "", "Service", "services", &["v1"]),
    Known::of(
        &endpoint_slice::EndpointSlice,
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        &["v1"],
    ),
    Known::of(&endpoints::Endpoints, "", "Endpoints", "endpoints", &["v1"]).in_files(),
    Known::of(&pod::Pod, "", "Pod", "pods", &["v1"]),
    Known::of(
        &virtual_service::VirtualService,
        ISTIO,
        "VirtualService",
        "virtualservices",
        ISTIO_VERSIONS,
    )
    .shown("vs", &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")]),
    Known::of(
        &destination_rule::DestinationRule,
        ISTIO,
        "DestinationRule",
        "destinationrules",
        ISTIO_VERSIONS,
    )
    .shown("dr", &[("Host", ".spec.host")]),
    Known::of(&gateway::Gateway, ISTIO, "Gateway", "gateways", ISTIO_VERSIONS)
        .shown("gw", &[("Selector", ".spec.selector")]),
    Known::of(
        &service_entry::ServiceEntry,
        ISTIO,
        "ServiceEntry",
        "serviceentries",
        ISTIO_VERSIONS,
    )
    .shown("se", &[("Hosts", ".spec.hosts"), ("Resolution", ".spec.resolution")]),
    Known::of(
        &workload_entry::WorkloadEntry,
        ISTIO,
        "WorkloadEntry",
        "workloadentries",
        ISTIO_VERSIONS,
    )
    .shown("we", &[("Address", ".spec.address")]),
    Known::of(&sidecar::Sidecar, ISTIO, "Sidecar", "sidecars", ISTIO_VERSIONS),
    Known::of(
        &peer_authentication::PeerAuthentication,
        "security.istio.io",
        "PeerAuthentication",
        "peerauthentications",
        &["v1", "v1beta1"],
    )
    .shown("pa", &[("Mode", ".spec.mtls.mode")]),
    Known::of(&mesh_config::MeshConfig, "heddle.io", "MeshConfig", "meshconfigs", &["v1alpha1"])
        .in_cluster()
        .in_files(),
];

// === impl Known ===

impl Known {
    /// A kind whose objects live in namespaces.
    const fn of(
        kind: &'static dyn Kind,
        group: &'static str,
        name: &'static str,
        plural: &'static str,
        versions: &'static [&'static str],
    ) -> Self {
        Self {
            kind,
            scope: KindScope::Namespaced,
            group,
            name,
            plural,
            versions,
            in_api: true,
            short_name: "",
            columns: &[],
        }
    }

    /// Whose objects live in none.
    const fn in_cluster(self) -> Self {
        Self { scope: KindScope::Cluster, ..self }
    }

    /// What `kubectl get` calls it and shows of it.
    const fn shown(
        self,
        short_name: &'static str,
        columns: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { short_name, columns, ..self }
    }

    /// Which a cluster has otherwise: as the text of a ConfigMap, or as another kind.
    const fn in_files(self) -> Self {
        Self { in_api: false, ..self }
    }

    /// Group and kind, as an `ObjectRef` holds them.
    pub const fn kind_name(&self) -> KindName {
        KindName { name: Cow::Borrowed(self.name), group: Cow::Borrowed(self.group) }
    }
}

/// The kind of this group and name, if we read it.
pub fn known_kind(group: &str, kind: &str) -> Option<&'static Known> {
    KINDS.iter().find(|k| k.group == group && k.name == kind)
}

/// Validate an object of a kind we read and turn it into rows.
pub fn lower(raw: RawObject) -> (Change, Vec<Problem>) {
    match raw.known() {
        Some(known) => {
            let mut problems = head::check(&raw, known);
            let (change, more) = known.kind.lower(raw);
            problems.extend(more);
            (change, problems)
        }
        None => (Change { owner: raw.owner, rows: Vec::new() }, Vec::new()),
    }
}

/// Groups in which a kind that we do not read would have had an effect.
const MESH_GROUPS: &[(&str, &[&str])] = &[
    ("networking.istio.io", &["WorkloadGroup", "EnvoyFilter", "ProxyConfig"]),
    ("security.istio.io", &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["WasmPlugin", "TrafficExtension"]),
    (
        "gateway.networking.k8s.io",
        &["GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "ReferenceGrant", "TCPRoute"],
    ),
    ("heddle.io", &[]),
];

/// What to say of a kind that we do not read; nothing where it is none of our business.
pub(crate) fn other_kind(owner: &Arc<ObjectRef>, group: &str, kind: &str) -> Option<Problem> {
    let of_group = KINDS.iter().filter(|k| k.group == group).map(|k| k.name);
    if let Some((_, later)) = MESH_GROUPS.iter().find(|(g, _)| *g == group) {
        if later.contains(&kind) {
            let message = format!(
                "{kind} is not supported by this version of Heddle, so the object has no effect"
            );
            return Some(Problem::warning(owner, "kind", Reason::NotSupported, message));
        }
        let message = match nearest(kind, of_group.chain(later.iter().copied())) {
            Some(near) => format!("there is no kind {kind} in {group}; did you mean {near}?"),
            None => format!("there is no kind {kind} in {group}; correct apiVersion or kind"),
        };
        return Some(Problem::error(owner, "kind", Reason::UnknownKind, message));
    }
    if KINDS.iter().any(|k| k.name == kind) {
        let right = KINDS.iter().find(|k| k.name == kind)?;
        let prefix = if right.group.is_empty() { "" } else { "/" };
        let message = format!(
            "{kind} is not in API group {group:?}; use apiVersion {}{prefix}{}",
            right.group, right.versions[0]
        );
        return Some(Problem::error(owner, "apiVersion", Reason::UnknownKind, message));
    }
    // Kubernetes' own and other people's kinds may stand in the same files; only what looks like a
    // slip of ours is worth a word.
    let near = nearest(kind, of_group)?;
    let message = format!("Heddle reads no kind {kind}; did you mean {near}?");
    Some(Problem::warning(owner, "kind", Reason::UnknownKind, message))
}
