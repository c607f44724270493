//! A small world for property tests: few names, so that changes meet each other.
//!
//! Every kind of row is here, every form of selector, and every form of visibility.

mod routing;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{
    CapturedPorts, ClientTls, Declared, DefaultVisibility, Destination, DestinationPolicy,
    EgressListener, Endpoint, EndpointSlice, Forward, Gateway, GatewayName, HashKey, HostPattern,
    HostScope, HttpAction, HttpMatch, HttpRule, IngressListener, IngressTarget, LbAlgorithm,
    LoadBalancer, Locality, LocalityBalance, Mesh, Namespace, Node, OutboundPolicy,
    OutlierDetection, PeerMode, PeerPolicy, Protocol, Resolution, Rewrite, RouteRules, Selects,
    Server, Service, ServicePort, SidecarScope, SlicePort, Source, StringMatch, Subset, TLS_MODE,
    TLS_MODE_LABEL, TargetPort, TcpMatch, TcpRule, TlsMatch, TlsRule, TrafficPolicy,
    WeightedDestination, Workload,
};
use model::{
    Capabilities, Engine, Kind, LayerId, ObjectRef, Proxy, ProxyKey, ResourceId, Row, ScopeId, ir,
};
use proptest::prelude::*;
use proptest::sample::select;

/// An object of namespace `ns`.
pub(crate) fn owner(kind: &'static str, name: &str) -> Arc<ObjectRef> {
    owner_in("ns", kind, name)
}

fn owner_in(namespace: &str, kind: &'static str, name: &str) -> Arc<ObjectRef> {
    Arc::new(ObjectRef {
        source: "test".into(),
        kind: Kind { name: kind.into(), group: "".into() },
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// Labels of these pairs.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
}

/// All workloads, those of an app, or those of a version of it.
fn selector(form: u8) -> BTreeMap<Arc<str>, Arc<str>> {
    match form {
        0 => BTreeMap::new(),
        1 => labels(&[("app", "s0")]),
        _ => labels(&[("app", "s0"), ("version", "v1")]),
    }
}

/// The host of a service of namespace `ns`.
pub(crate) fn host(n: u8) -> Arc<str> {
    format!("s{n}.ns.svc.cluster.local").into()
}

/// A host of a service: of two namespaces, and one that Kubernetes does not know.
fn service_host() -> impl Strategy<Value = Arc<str>> {
    let known = [host(0), host(1), Arc::from("s0.other.svc.cluster.local")];
    select(known.into_iter().chain(["a.com".into(), "*.com".into()]).collect::<Vec<_>>())
}

/// A namespace: that of most objects, another, or the root namespace.
fn namespace() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("ns"), 2 => Just("other"), 1 => Just("istio-system")]
}

fn default_visibility() -> impl Strategy<Value = DefaultVisibility> {
    let some = |own, names: &[&str]| DefaultVisibility::Only {
        own,
        namespaces: names.iter().map(|n| Arc::from(*n)).collect(),
    };
    select(vec![
        DefaultVisibility::Everyone,
        DefaultVisibility::own(),
        some(true, &["ns"]),
        some(false, &["other"]),
        some(false, &["ns", "third"]),
        some(false, &[]),
    ])
}

/// What an object says of who sees it, if anything.
fn visibility() -> impl Strategy<Value = Option<DefaultVisibility>> {
    proptest::option::of(default_visibility())
}

fn sidecar_scope() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    let any = |host: &str| HostPattern { scope: HostScope::Any, host: host.into() };
    let of = |namespace: &str, host: &str| HostPattern {
        scope: HostScope::Namespace(namespace.into()),
        host: host.into(),
    };
    let on = |port, hosts| EgressListener { port, hosts, ..EgressListener::default() };
    let egress = select(vec![
        None,
        Some(vec![any("*")]),
        Some(vec![any("s0.ns.svc.cluster.local")]),
        Some(vec![any("*.ns.svc.cluster.local"), any("a.com")]),
        Some(vec![of("ns", "*")]),
        Some(vec![of("other", "*"), of("ns", "s1.ns.svc.cluster.local")]),
        Some(vec![]),
    ]);
    let excluded = select(vec![vec![], vec![of("ns", "s0.ns.svc.cluster.local")]]);
    let port = select(vec![None, None, Some(80_u16), Some(81)]);
    let outbound =
        select(vec![None, Some(OutboundPolicy::AllowAny), Some(OutboundPolicy::RegistryOnly)]);
    (0..2_u8, namespace(), 0..3_u8, egress, excluded, outbound, port).prop_map(
        move |(n, namespace, form, egress, excluded, outbound, port)| {
            let egress = egress.map(|hosts: Vec<HostPattern>| {
                let bind = (form == 2 && port.is_some()).then(|| IpAddr::from([127, 0, 0, 1]));
                let first = EgressListener { excluded, bind, ..on(port, hosts) };
                vec![first, on(None, vec![of("other", "*")])]
            });
            let ingress = port.filter(|_| n == 1).map(|port| IngressListener {
                field: "spec.ingress[0]".into(),
                port,
                protocol: Protocol::Http,
                bind: None,
                opened: form == 1,
                to: IngressTarget::Address([127, 0, 0, 1].into(), 8080),
                pool: None,
            });
            let row = SidecarScope {
                namespace: namespace.into(),
                created: None,
                selector: selector(form),
                egress,
                outbound,
                ingress: ingress.into_iter().collect(),
                inbound_pool: None,
            };
            (owner_in(namespace, "Sidecar", &format!("c{n}")), Row::SidecarScope(row.into()))
        },
    )
}

fn peer_policy() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    let namespaces = select(vec!["ns", "other", "istio-system"]);
    let mode = || {
        let modes = [PeerMode::Disable, PeerMode::Permissive, PeerMode::Strict];
        select(modes.map(Some).into_iter().chain([None]).collect::<Vec<_>>())
    };
    (0..2_u8, 0..3_u8, namespaces, mode(), mode()).prop_map(|(n, form, namespace, mode, port)| {
        let row = PeerPolicy {
            namespace: namespace.into(),
            created: None,
            selector: selector(form),
            mode,
            ports: port.into_iter().map(|mode| (8080, mode)).collect(),
        };
        let name = format!("a{n}");
        (owner_in(namespace, "PeerAuthentication", &name), Row::PeerPolicy(row.into()))
    })
}

fn settings() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (1..3_u64, default_visibility(), default_visibility(), default_visibility(), any::<bool>())
        .prop_map(|(seconds, rules_export_to, policies_export_to, services_export_to, open)| {
            let row = Mesh {
                connect_timeout: std::time::Duration::from_secs(seconds),
                outbound: match open {
                    true => OutboundPolicy::AllowAny,
                    false => OutboundPolicy::RegistryOnly,
                },
                rules_export_to,
                policies_export_to,
                services_export_to,
                ..Mesh::default()
            };
            (owner("MeshConfig", "mesh"), Row::Mesh(row.into()))
        })
}

/// One object.
pub(crate) fn row() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    prop_oneof![
        3 => services::service(),
        2 => services::slice(),
        2 => services::workload(),
        3 => routing::rules(),
        3 => routing::policy(),
        1 => routing::gateway(),
        2 => sidecar_scope(),
        2 => peer_policy(),
        1 => (0..2_u8, 0..2_u8).prop_map(|(n, zone)| {
            let locality = Locality { zone: format!("z{zone}").into(), ..Locality::default() };
            let row = Node { name: format!("n{n}").into(), locality };
            (owner("Node", &format!("n{n}")), Row::Node(row.into()))
        }),
        1 => (0..2_u8).prop_map(|n| {
            let row = Namespace { name: "ns".into(), labels: labels(&[("n", &n.to_string())]) };
            (owner("Namespace", "ns"), Row::Namespace(row.into()))
        }),
        1 => settings(),
    ]
}

/// Gateways and sidecars of several namespaces, one of which no object is in.
pub(crate) fn proxies() -> Vec<(ProxyKey, Proxy)> {
    let full = Capabilities { vhds: true, mutual_tls: false };
    let inline = Capabilities { vhds: false, mutual_tls: false };
    let proxy = |id, capabilities| Proxy::parse(id, None, capabilities).expect("valid");
    let agent = Capabilities { mutual_tls: true, ..full };
    let mut labelled = proxy("router~1.1.1.1~x.ns~d", full);
    labelled.labels = labels(&[("gw", "1")]);
    let mut alone = proxy("sidecar~1.1.1.1~p3.ns~d", full);
    alone.captures = false;
    let mut far = proxy("sidecar~1.1.1.1~p4.ns~d", full);
    far.locality.zone = "z1".into();
    let all = vec![
        proxy("router~1.1.1.1~p0.ns~d", full),
        proxy("router~1.1.1.1~p1.ns~d", inline),
        labelled,
        alone,
        far,
        proxy("router~1.1.1.1~p0.other~d", full),
        proxy("sidecar~1.1.1.1~p0.ns~d", full),
        proxy("sidecar~1.1.1.1~p1.ns~d", full),
        proxy("sidecar~1.1.1.1~p1.ns~d", agent),
        proxy("sidecar~1.1.1.1~p2.other~d", agent),
        proxy("router~1.1.1.1~p2.ns~d", agent),
        proxy("sidecar~1.1.1.1~p2.ns~d", inline),
        proxy("sidecar~1.1.1.1~p0.other~d", full),
        proxy("sidecar~1.1.1.1~p0.third~d", full),
        proxy("sidecar~1.1.1.1~p0.istio-system~d", full),
    ];
    (1..).map(ProxyKey).zip(all).collect()
}

/// What one who only listens to updates knows.
#[derive(Default)]
pub(crate) struct Mirror {
    layers: BTreeMap<LayerId, Layer>,
    scopes: BTreeMap<ScopeId, Vec<LayerId>>,
    assigned: BTreeMap<ProxyKey, ScopeId>,
    pub(crate) resources: BTreeMap<ResourceId, Arc<ir::Resource>>,
}

#[derive(Default)]
struct Layer {
    set: BTreeSet<ResourceId>,
    hidden: BTreeSet<ResourceId>,
}

impl Mirror {
    /// Take over an update.
    pub(crate) fn take(&mut self, update: model::Update) {
        let mut told = BTreeSet::new();
        for (id, resource) in update.resources {
            assert!(told.insert(id), "{id:?} is told twice");
            let known = self.resources.remove(&id);
            if let Some(resource) = resource {
                // Who is told of a resource that is what it was would send it again.
                assert_ne!(known.as_ref(), Some(&resource));
                self.resources.insert(id, resource);
            }
        }
        self.resources.extend(update.refreshed);
        for (id, diff) in update.layers {
            let Some(diff) = diff else {
                self.layers.remove(&id);
                continue;
            };
            let Layer { set, hidden } = self.layers.entry(id).or_default();
            let gone = |from: &mut BTreeSet<_>, ids: Vec<_>| {
                ids.iter().for_each(|id| assert!(from.remove(id), "{id:?} was not there"));
            };
            gone(set, diff.unset);
            gone(hidden, diff.unhidden);
            diff.set.into_iter().for_each(|id| assert!(set.insert(id), "{id:?} was there"));
            diff.hidden.into_iter().for_each(|id| assert!(hidden.insert(id), "{id:?} was there"));
        }
        for (id, stack) in update.scopes {
            match stack {
                Some(stack) => drop(self.scopes.insert(id, stack)),
                None => drop(self.scopes.remove(&id)),
            }
        }
        self.assigned.extend(update.assigned);
    }

    /// The resources of a proxy.
    pub(crate) fn view(&self, key: ProxyKey) -> BTreeSet<ResourceId> {
        let mut members = BTreeSet::new();
        for layer in &self.scopes[&self.assigned[&key]] {
            let Some(Layer { set, hidden }) = self.layers.get(layer) else { continue };
            members.retain(|id| !hidden.contains(id));
            members.extend(set.iter().copied());
        }
        members
    }
}

/// Everything that may be seen of an engine, without the numbers that depend on history.
pub(crate) fn seen(
    engine: &Engine,
    mirror: &Mirror,
) -> (BTreeMap<ProxyKey, BTreeSet<String>>, Vec<String>) {
    let resources: BTreeMap<ResourceId, String> =
        engine.resources().map(|(id, r)| (id, format!("{r:?}"))).collect();
    let mut views = BTreeMap::new();
    for key in mirror.assigned.keys() {
        let members: Vec<_> = mirror.view(*key).into_iter().collect();
        let mut names = BTreeSet::new();
        for id in &members {
            let resource = &mirror.resources[id];
            let name = format!("{:?} {}", std::mem::discriminant(&**resource), resource.name());
            assert!(names.insert(name), "{key:?} has another resource named {}", resource.name());
        }
        views.insert(*key, members.iter().map(|id| resources[id].clone()).collect());
    }
    (views, engine.problems().iter().map(ToString::to_string).collect())
}
