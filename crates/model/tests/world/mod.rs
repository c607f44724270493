//! A small world for property tests: few names, so that changes meet each other.
//!
//! Every kind of row is here, every form of selector, and every form of visibility.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{
    ClientTls, Declared, DefaultVisibility, Destination, DestinationPolicy, EgressListener,
    Endpoint, EndpointSlice, Forward, Gateway, GatewayName, HashKey, HostPattern, HostScope,
    HttpAction, HttpMatch, HttpRule, IngressListener, IngressTarget, LbAlgorithm, LoadBalancer,
    Locality, LocalityBalance, Mesh, Namespace, Node, OutboundPolicy, OutlierDetection, PeerMode,
    PeerPolicy, Protocol, Resolution, Rewrite, RouteRules, Selects, Server, Service, ServicePort,
    SidecarScope, SlicePort, Source, StringMatch, Subset, TLS_MODE, TLS_MODE_LABEL, TargetPort,
    TcpMatch, TcpRule, TlsMatch, TlsRule, TrafficPolicy, WeightedDestination, Workload,
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

fn service() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    use Protocol::{Http, Http2, Tcp, Tls, Unknown};
    let protocol = select(vec![Http, Http2, Tcp, Tcp, Tls, Unknown]);
    let what = (0..8_u8, proptest::option::of(0..2_i64));
    (service_host(), 0..2_u16, protocol, namespace(), visibility(), what).prop_map(
        |(host, port, protocol, namespace, export_to, (form, created))| {
            let name = host.split('.').next().unwrap_or_default().to_owned();
            let row = Service {
                // One host may be declared in two namespaces.
                host,
                namespace: namespace.into(),
                name: name.as_str().into(),
                created,
                addresses: (form == 1).then(|| IpAddr::from([10, 0, 0, 1])).into_iter().collect(),
                subnets: (form == 3)
                    .then(|| "10.0.0.0/24".parse().ok())
                    .flatten()
                    .into_iter()
                    .collect(),
                headless: form == 4,
                resolution: match form {
                    5 => Resolution::Original,
                    6 | 7 => Resolution::Dns,
                    _ => Resolution::Endpoints,
                },
                alias_of: (form == 7).then(|| self::host(1)),
                ports: vec![ServicePort {
                    number: 80 + port,
                    name: "http".into(),
                    protocol,
                    target: TargetPort::Number(8080),
                }],
                selector: match form {
                    0 => BTreeMap::new(),
                    _ => labels(&[("app", &name)]),
                },
                selects: if created.is_some() { Selects::All } else { Selects::Registered },
                export_to: export_to.map(|v| v.of(&namespace.into())),
            };
            // Users may declare the ports of a host in several objects.
            let of_port = if created.is_some() { format!("-{port}") } else { String::new() };
            (owner_in(namespace, "Service", &format!("{name}{of_port}")), Row::Service(row.into()))
        },
    )
}

fn declared(n: u8) -> Arc<Declared> {
    Arc::new(Declared {
        dns_name: (n == 1).then(|| "b.com".into()),
        labels: labels(&[("version", &format!("v{n}")), (TLS_MODE_LABEL, TLS_MODE)]),
        service_account: (n == 2).then(|| "sa".into()),
        locality: Locality { zone: format!("z{n}").into(), ..Locality::default() },
        weight: u32::from(n) + 1,
    })
}

fn slice() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (0..2_u8, 0..3_u8, 0..4_u8, any::<bool>(), namespace(), 0..4_u8).prop_map(
        |(n, slice, last, ready, namespace, place)| {
            let endpoint = |i: u8| Endpoint {
                addresses: vec![IpAddr::from([127, 0, 0, i])],
                ready,
                draining: !ready,
                workload: Some(format!("p{i}").into()),
                node: (place > 0).then(|| format!("n{}", i % 2).into()),
                zone: (place == 2).then(|| "z".into()),
                declared: (place == 3).then(|| declared(i)),
            };
            let row = EndpointSlice {
                namespace: namespace.into(),
                service: format!("s{n}").into(),
                ports: vec![SlicePort { name: "http".into(), number: 8080 }],
                endpoints: (0..last).map(endpoint).collect(),
            };
            (
                owner_in(namespace, "EndpointSlice", &format!("s{n}-{slice}")),
                Row::EndpointSlice(row.into()),
            )
        },
    )
}

fn workload() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (0..4_u8, 0..2_u8, 0..3_u8, namespace(), 0..4_u8, any::<bool>()).prop_map(
        |(n, app, version, namespace, form, mutual_tls)| {
            let mut own =
                labels(&[("app", &format!("s{app}")), ("version", &format!("v{version}"))]);
            if mutual_tls {
                own.insert(TLS_MODE_LABEL.into(), TLS_MODE.into());
            }
            let row = Workload {
                namespace: namespace.into(),
                name: format!("p{n}").into(),
                labels: own,
                addresses: vec![IpAddr::from([127, 0, 0, n])],
                service_account: if version == 0 { "default" } else { "sa" }.into(),
                named_ports: BTreeMap::new(),
                node: (form == 3).then(|| "n0".into()),
                ready: form != 1,
                declared: (form == 2).then(|| declared(version)),
            };
            (owner_in(namespace, "Pod", &format!("p{n}")), Row::Workload(row.into()))
        },
    )
}

/// What a rule list is for.
const RULE_HOSTS: [&str; 7] = [
    "a.com",
    "*.com",
    "*",
    "s0.ns.svc.cluster.local",
    "s0.other.svc.cluster.local",
    "*.ns.svc.cluster.local",
    "s1.ns",
];

/// Conditions on addresses.
fn blocks(n: u8) -> TcpMatch {
    TcpMatch {
        destinations: (n == 2).then(|| "10.0.0.0/30".parse().ok()).flatten().into_iter().collect(),
        client: if n == 0 { "10.1.0.0/16".parse().ok() } else { None },
        ..TcpMatch::default()
    }
}

fn rules() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    let what = (
        0..3_u8,
        select(RULE_HOSTS.to_vec()),
        proptest::option::of(0..2_i64),
        service_host(),
        0..3_u8,
        0..3_u32,
    );
    let source = select(vec![
        Source::default(),
        Source { namespace: Some("other".into()), ..Source::default() },
        Source { labels: labels(&[("app", "s0")]), ..Source::default() },
        Source { labels: labels(&[("app", "s1"), ("version", "v1")]), ..Source::default() },
        Source { gateways: vec![GatewayName::Mesh], ..Source::default() },
    ]);
    (what, (namespace(), visibility(), 0..3_u8, source, any::<bool>())).prop_map(
        |((n, on, created, to, subset, weight), (namespace, export_to, bound, source, tcp))| {
            let destination = |subset: u8, weight| WeightedDestination {
                field: "spec.http[0].route[0]".into(),
                destination: Destination {
                    host: Arc::clone(&to),
                    subset: (subset > 0).then(|| format!("v{subset}").into()),
                    port: None,
                },
                weight,
            };
            let gateway = GatewayName::Gateway { namespace: "ns".into(), name: "g".into() };
            let row = RouteRules {
                namespace: namespace.into(),
                created,
                hosts: vec![on.into()],
                gateways: match bound {
                    0 => vec![gateway],
                    1 => vec![GatewayName::Mesh],
                    _ => vec![gateway, GatewayName::Mesh],
                },
                export_to: export_to.map(|v| v.of(&namespace.into())),
                http: vec![HttpRule {
                    field: "spec.http[0]".into(),
                    name: None,
                    matches: vec![HttpMatch {
                        field: "spec.http[0].match[0]".into(),
                        name: None,
                        path: (n > 0).then(|| StringMatch::Prefix(format!("/{n}").into())),
                        ignore_path_case: false,
                        headers: vec![],
                        query: vec![],
                        port: None,
                        source: source.clone(),
                    }],
                    action: HttpAction::Forward(Forward {
                        destinations: vec![destination(subset, 1), destination(0, weight)],
                        rewrite: Rewrite::default(),
                        timeout: None,
                        retries: None,
                    }),
                }],
                tcp: tcp
                    .then(|| TcpRule {
                        field: "spec.tcp[0]".into(),
                        matches: vec![TcpMatch { source: source.clone(), ..blocks(n) }],
                        destinations: vec![destination(subset, 1), destination(0, weight)],
                    })
                    .into_iter()
                    .collect(),
                tls: (n != 1)
                    .then(|| TlsRule {
                        field: "spec.tls[0]".into(),
                        matches: vec![TlsMatch {
                            server_names: vec!["a.com".into(), on.into()],
                            connection: TcpMatch { source, ..blocks(n) },
                        }],
                        destinations: vec![destination(subset, 1), destination(0, weight)],
                    })
                    .into_iter()
                    .collect(),
            };
            (owner_in(namespace, "VirtualService", &format!("r{n}")), Row::RouteRules(row.into()))
        },
    )
}

fn policy() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    let of = prop_oneof![
        4 => service_host(),
        1 => Just(Arc::from("*.ns.svc.cluster.local")),
        1 => Just(Arc::from("*")),
    ];
    let hash = LoadBalancer {
        algorithm: LbAlgorithm::RingHash { least: 1024 },
        hash: Some(HashKey::SourceIp),
        locality: None,
    };
    let shares = LocalityBalance {
        enabled: true,
        distribute: vec![("/z0".into(), vec![("/z1".into(), 40), ("*".into(), 60)])],
        failover: vec![],
        priority: vec![],
    };
    let agreeing = LocalityBalance {
        priority: vec![
            ("topology.kubernetes.io/zone".into(), None),
            ("version".into(), Some("v1".into())),
            ("app".into(), None),
        ],
        ..LocalityBalance::default()
    };
    let placed = LoadBalancer { locality: Some(shares.into()), ..LbAlgorithm::LeastRequest.into() };
    let balancer = select(vec![
        None,
        Some(LbAlgorithm::Random.into()),
        Some(LbAlgorithm::Passthrough.into()),
        Some(hash),
        Some(placed),
        Some(LoadBalancer { locality: Some(agreeing.into()), ..LbAlgorithm::Random.into() }),
    ]);
    let tls = select(vec![
        None,
        Some(ClientTls::Disable),
        Some(ClientTls::Mesh { sni: None, names: vec![] }),
        Some(ClientTls::Refused),
    ]);
    (0..2_u8, of, balancer, 0..3_u8, namespace(), visibility(), tls).prop_map(
        |(n, of, load_balancer, version, namespace, export_to, tls)| {
            let row = DestinationPolicy {
                namespace: namespace.into(),
                created: None,
                host: of,
                export_to: export_to.map(|v| v.of(&namespace.into())),
                field: "spec.trafficPolicy".into(),
                policy: TrafficPolicy {
                    ports: BTreeMap::from([(81, TrafficPolicy::default())]),
                    load_balancer,
                    outlier_detection: (version == 2).then(OutlierDetection::default),
                    tls: tls.clone(),
                    ..TrafficPolicy::default()
                },
                subsets: vec![Subset {
                    field: "spec.subsets[0]".into(),
                    name: "v1".into(),
                    labels: labels(&[("version", &format!("v{version}"))]),
                    policy: TrafficPolicy::default(),
                }],
            };
            let row = Row::DestinationPolicy(row.into());
            (owner_in(namespace, "DestinationRule", &format!("d{n}")), row)
        },
    )
}

fn gateway() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (0..3_u8, 0..2_u16).prop_map(|(n, port)| {
        let row = Gateway {
            namespace: "ns".into(),
            name: "g".into(),
            created: None,
            selector: match n {
                0 => BTreeMap::new(),
                1 => labels(&[("gw", "1")]),
                _ => labels(&[("app", "s0"), ("version", "v1")]),
            },
            servers: vec![Server {
                field: "spec.servers[0]".into(),
                port: 8080 + port,
                bind: None,
                hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
            }],
        };
        (owner("Gateway", "g"), Row::Gateway(row.into()))
    })
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
                selector: match form {
                    0 => BTreeMap::new(),
                    1 => labels(&[("app", "s0")]),
                    _ => labels(&[("app", "s0"), ("version", "v1")]),
                },
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
            selector: match form {
                0 => BTreeMap::new(),
                1 => labels(&[("app", "s0")]),
                _ => labels(&[("app", "s0"), ("version", "v1")]),
            },
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
        3 => service(),
        2 => slice(),
        2 => workload(),
        3 => rules(),
        3 => policy(),
        1 => gateway(),
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
