//! Whatever the history, the same objects give the same output.
//!
//! Random batches of changes to a small world, then the same final objects all at once, in another
//! order: resources, problems and what streams are told must be equal. `PROPTEST_CASES` asks for
//! more histories.
#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{
    DefaultVisibility, Destination, DestinationPolicy, Endpoint, EndpointSlice, Forward, Gateway,
    GatewayName, HostPattern, HostScope, HttpAction, HttpMatch, HttpRule, LbAlgorithm, Mesh,
    Namespace, Protocol, Rewrite, RouteRules, Server, Service, ServicePort, SlicePort, StringMatch,
    Subset, TargetPort, TrafficPolicy, WeightedDestination, Workload,
};
use model::{
    Batch, Capabilities, Change, Engine, Kind, ObjectRef, Proxy, ProxyKey, ResourceId, Row, ir,
};
use proptest::prelude::*;

fn owner(kind: &'static str, name: &str) -> Arc<ObjectRef> {
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

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
}

fn host(n: u8) -> Arc<str> {
    format!("s{n}.ns.svc.cluster.local").into()
}

/// A namespace: that of most objects, or another.
fn namespace() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("ns"), 1 => Just("other")]
}

fn default_visibility() -> impl Strategy<Value = DefaultVisibility> {
    let some = |own, names: &[&str]| DefaultVisibility::Only {
        own,
        namespaces: names.iter().map(|n| Arc::from(*n)).collect(),
    };
    proptest::sample::select(vec![
        DefaultVisibility::Everyone,
        DefaultVisibility::own(),
        some(true, &["ns"]),
        some(false, &["other"]),
        some(false, &[]),
    ])
}

/// What an object says of who sees it, if anything.
fn visibility() -> impl Strategy<Value = Option<DefaultVisibility>> {
    proptest::option::of(default_visibility())
}

/// One object of a small world: few names, so that changes meet each other.
fn row() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    prop_oneof![
        (0..2_u8, 0..3_u16, any::<bool>(), namespace(), visibility()).prop_map(
            |(n, port, http2, namespace, export_to)| {
                let protocol = if http2 { Protocol::Http2 } else { Protocol::Http };
                let row = Service {
                    // One host declared in two namespaces.
                    host: host(n),
                    namespace: namespace.into(),
                    name: format!("s{n}").into(),
                    ports: vec![ServicePort {
                        number: 80 + port,
                        name: "http".into(),
                        protocol,
                        target: TargetPort::Number(8080),
                    }],
                    selector: labels(&[("app", &format!("s{n}"))]),
                    export_to: export_to.map(|v| v.of(&namespace.into())),
                };
                (owner_in(namespace, "Service", &format!("s{n}")), Row::Service(row))
            }
        ),
        (0..2_u8, 0..3_u8, 0..4_u8, any::<bool>(), namespace()).prop_map(
            |(n, slice, last, ready, namespace)| {
                let endpoint = |i: u8| Endpoint {
                    addresses: vec![IpAddr::from([127, 0, 0, i])],
                    ready,
                    draining: !ready,
                    workload: Some(format!("p{i}").into()),
                };
                let row = EndpointSlice {
                    namespace: namespace.into(),
                    service: format!("s{n}").into(),
                    ports: vec![SlicePort { name: "http".into(), number: 8080 }],
                    endpoints: (0..last).map(endpoint).collect(),
                };
                (
                    owner_in(namespace, "EndpointSlice", &format!("s{n}-{slice}")),
                    Row::EndpointSlice(row),
                )
            }
        ),
        (0..4_u8, 0..2_u8, 0..3_u8).prop_map(|(n, app, version)| {
            let row = Workload {
                namespace: "ns".into(),
                name: format!("p{n}").into(),
                labels: labels(&[("app", &format!("s{app}")), ("version", &format!("v{version}"))]),
                addresses: vec![IpAddr::from([127, 0, 0, n])],
                service_account: "default".into(),
                named_ports: BTreeMap::new(),
            };
            (owner("Pod", &format!("p{n}")), Row::Workload(row))
        }),
        (
            (0..3_u8, 0..3_u8, proptest::option::of(0..2_i64), 0..3_u8, 0..3_u8, 0..3_u32),
            (namespace(), visibility()),
        )
            .prop_map(|((n, on, created, to, subset, weight), (namespace, export_to))| {
                let destination = |to: u8, subset: u8, weight| WeightedDestination {
                    field: "spec.http[0].route[0]".into(),
                    destination: Destination {
                        host: host(to),
                        subset: (subset > 0).then(|| format!("v{subset}").into()),
                        port: None,
                    },
                    weight,
                };
                let row = RouteRules {
                    namespace: namespace.into(),
                    created,
                    hosts: vec![["a.com", "*.com", "*"][on as usize].into()],
                    gateways: vec![GatewayName::Gateway {
                        namespace: "ns".into(),
                        name: "g".into(),
                    }],
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
                        }],
                        action: HttpAction::Forward(Forward {
                            destinations: vec![
                                destination(to, subset, 1),
                                destination(to, 0, weight),
                            ],
                            rewrite: Rewrite::default(),
                            timeout: None,
                            retries: None,
                        }),
                    }],
                };
                (owner_in(namespace, "VirtualService", &format!("r{n}")), Row::RouteRules(row))
            }),
        (0..2_u8, 0..2_u8, any::<bool>(), 0..3_u8, namespace(), visibility()).prop_map(
            |(n, of, random, version, namespace, export_to)| {
                let row = DestinationPolicy {
                    namespace: namespace.into(),
                    created: None,
                    host: host(of),
                    export_to: export_to.map(|v| v.of(&namespace.into())),
                    field: "spec.trafficPolicy".into(),
                    policy: TrafficPolicy {
                        load_balancer: random.then_some(LbAlgorithm::Random),
                        ..TrafficPolicy::default()
                    },
                    subsets: vec![Subset {
                        field: "spec.subsets[0]".into(),
                        name: "v1".into(),
                        labels: labels(&[("version", &format!("v{version}"))]),
                        policy: TrafficPolicy::default(),
                    }],
                };
                let row = Row::DestinationPolicy(Box::new(row));
                (owner_in(namespace, "DestinationRule", &format!("d{n}")), row)
            }
        ),
        (0..2_u8, 0..2_u16).prop_map(|(n, port)| {
            let row = Gateway {
                namespace: "ns".into(),
                name: "g".into(),
                created: None,
                selector: if n == 0 { BTreeMap::new() } else { labels(&[("gw", "1")]) },
                servers: vec![Server {
                    field: "spec.servers[0]".into(),
                    port: 8080 + port,
                    bind: None,
                    hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
                }],
            };
            (owner("Gateway", "g"), Row::Gateway(row))
        }),
        (0..2_u8).prop_map(|n| {
            let row = Namespace { name: "ns".into(), labels: labels(&[("n", &n.to_string())]) };
            (owner("Namespace", "ns"), Row::Namespace(row))
        }),
        (1..3_u64, default_visibility(), default_visibility(), default_visibility()).prop_map(
            |(seconds, rules_export_to, policies_export_to, services_export_to)| {
                let row = Mesh {
                    connect_timeout: std::time::Duration::from_secs(seconds),
                    rules_export_to,
                    policies_export_to,
                    services_export_to,
                    ..Mesh::default()
                };
                (owner("MeshConfig", "mesh"), Row::Mesh(row))
            }
        ),
    ]
}

type Step = ((Arc<ObjectRef>, Row), bool);

fn proxies() -> Vec<(ProxyKey, Proxy)> {
    let full = Capabilities { vhds: true };
    let inline = Capabilities { vhds: false };
    let mut labelled = Proxy::parse("router~1.1.1.1~x.ns~d", None, full).expect("valid");
    labelled.labels = labels(&[("gw", "1")]);
    vec![
        (ProxyKey(1), Proxy::parse("router~1.1.1.1~p0.ns~d", None, full).expect("valid")),
        (ProxyKey(2), Proxy::parse("router~1.1.1.1~p1.ns~d", None, inline).expect("valid")),
        (ProxyKey(3), labelled),
        (ProxyKey(4), Proxy::parse("router~1.1.1.1~p0.other~d", None, full).expect("valid")),
    ]
}

/// Everything that may be seen of an engine, without the numbers that depend on history.
fn seen(engine: &Engine, mirror: &Mirror) -> (BTreeMap<ProxyKey, BTreeSet<String>>, Vec<String>) {
    let resources: BTreeMap<ResourceId, String> =
        engine.resources().map(|(id, r)| (id, format!("{r:?}"))).collect();
    let of = |scope: &model::ScopeId| {
        mirror.scopes[scope].iter().map(|id| resources[id].clone()).collect()
    };
    let views = mirror.assigned.iter().map(|(key, scope)| (*key, of(scope))).collect();
    (views, engine.problems().iter().map(ToString::to_string).collect())
}

/// What one who only listens to updates knows.
#[derive(Default)]
struct Mirror {
    scopes: BTreeMap<model::ScopeId, BTreeSet<ResourceId>>,
    assigned: BTreeMap<ProxyKey, model::ScopeId>,
    resources: BTreeMap<ResourceId, Arc<ir::Resource>>,
}

impl Mirror {
    fn take(&mut self, update: model::Update) {
        for (id, resource) in update.resources {
            let known = self.resources.remove(&id);
            if let Some(resource) = resource {
                // Who is told of a resource that is what it was would send it again.
                assert_ne!(known.as_ref(), Some(&resource));
                self.resources.insert(id, resource);
            }
        }
        self.resources.extend(update.refreshed);
        for (id, members) in update.scopes {
            match members {
                Some(members) => self.scopes.insert(id, (*members).clone()),
                None => self.scopes.remove(&id),
            };
        }
        self.assigned.extend(update.assigned);
    }
}

proptest! {
    #[test]
    fn any_history_of_the_same_objects_gives_the_same_output(
        batches in proptest::collection::vec(
            proptest::collection::vec((row(), any::<bool>()), 1..6),
            1..12,
        )
    ) {
        let mut engine = Engine::new();
        let mut mirror = Mirror::default();
        let mut world: BTreeMap<Arc<ObjectRef>, Row> = BTreeMap::new();
        let connect = Batch { connected: proxies(), ..Batch::default() };
        mirror.take(engine.apply(connect));
        for batch in batches {
            let mut changes = Vec::new();
            for ((owner, row), delete) in batch as Vec<Step> {
                let rows = if delete { vec![] } else { vec![row.clone()] };
                if delete {
                    world.remove(&owner);
                } else {
                    world.insert(owner.clone(), row);
                }
                changes.push(Change { owner, rows });
            }
            mirror.take(engine.apply(Batch { changes, ..Batch::default() }));
            // Who listens to updates knows what the engine knows, origins included.
            let kept: BTreeMap<_, _> = engine.resources().collect();
            prop_assert_eq!(format!("{:?}", mirror.resources), format!("{kept:?}"));
        }
        let mut scratch = Engine::new();
        let mut fresh = Mirror::default();
        let changes = world.into_iter().rev();
        let changes = changes.map(|(owner, row)| Change { owner, rows: vec![row] }).collect();
        let connected = proxies();
        fresh.take(scratch.apply(Batch { changes, connected, disconnected: vec![] }));
        prop_assert_eq!(seen(&engine, &mirror), seen(&scratch, &fresh));
        // What history left behind would be a leak.
        prop_assert_eq!(engine.size(), scratch.size());
        prop_assert_eq!(engine.verify(), Vec::<String>::new());
    }

    #[test]
    fn what_nobody_wants_any_more_is_forgotten(
        batches in proptest::collection::vec(proptest::collection::vec(row(), 1..6), 1..6)
    ) {
        let mut engine = Engine::new();
        let connect = Batch { connected: proxies(), ..Batch::default() };
        engine.apply(connect.clone());
        let empty = engine.size();
        let mut owners = BTreeSet::new();
        for batch in batches {
            let changes = batch.into_iter().map(|(owner, row)| {
                owners.insert(owner.clone());
                Change { owner, rows: vec![row] }
            });
            let changes = changes.collect();
            engine.apply(Batch { changes, ..Batch::default() });
        }
        let changes = owners.into_iter().map(|owner| Change { owner, rows: vec![] }).collect();
        engine.apply(Batch { changes, ..Batch::default() });
        prop_assert_eq!(engine.size(), empty);
        let disconnected = proxies().into_iter().map(|(key, _)| key).collect();
        engine.apply(Batch { disconnected, ..Batch::default() });
        prop_assert_eq!(engine.size(), Engine::new().size());
    }

    #[test]
    fn an_edit_without_effect_says_nothing(steps in proptest::collection::vec(row(), 1..20)) {
        let mut engine = Engine::new();
        let changes: Vec<_> = steps
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .map(|(owner, row)| Change { owner, rows: vec![row] })
            .collect();
        let connected = proxies();
        engine.apply(Batch { changes: changes.clone(), connected, disconnected: vec![] });
        let again = engine.apply(Batch { changes, ..Batch::default() });
        prop_assert!(!again.touched);
        prop_assert!(again.resources.is_empty() && again.scopes.is_empty());
        prop_assert!(again.assigned.is_empty());
    }
}

#[test]
fn given_a_pod_with_other_labels_when_it_is_relabelled_then_its_proxy_is_scoped_anew() {
    let gateway = |selector| {
        let row = Gateway {
            namespace: "ns".into(),
            name: "g".into(),
            created: None,
            selector,
            servers: vec![Server {
                field: "spec.servers[0]".into(),
                port: 8080,
                bind: None,
                hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
            }],
        };
        Change { owner: owner("Gateway", "g"), rows: vec![Row::Gateway(row)] }
    };
    let pod = |value| {
        let row = Workload {
            namespace: "ns".into(),
            name: "p0".into(),
            labels: labels(&[("gw", value)]),
            addresses: vec![],
            service_account: "default".into(),
            named_ports: BTreeMap::new(),
        };
        Change { owner: owner("Pod", "p0"), rows: vec![Row::Workload(row)] }
    };
    let mut engine = Engine::new();
    let mut mirror = Mirror::default();
    mirror.take(engine.apply(Batch {
        changes: vec![gateway(labels(&[("gw", "1")])), pod("0")],
        connected: proxies().into_iter().take(1).collect(),
        disconnected: vec![],
    }));
    let members = |m: &Mirror| m.scopes[&m.assigned[&ProxyKey(1)]].len();
    assert_eq!(members(&mirror), 0);
    mirror.take(engine.apply(Batch { changes: vec![pod("1")], ..Batch::default() }));
    // A listener, a RouteConfiguration, the `*` host.
    assert_eq!(members(&mirror), 3);
}

#[test]
fn given_a_row_that_one_scope_drops_and_another_takes_when_it_differs_too_then_it_is_told_once() {
    let gateway = Gateway {
        namespace: "ns".into(),
        name: "g".into(),
        created: None,
        selector: BTreeMap::new(),
        servers: vec![Server {
            field: "spec.servers[0]".into(),
            port: 8080,
            bind: None,
            hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
        }],
    };
    let rules = RouteRules {
        namespace: "ns".into(),
        created: None,
        hosts: vec!["a.com".into()],
        gateways: vec![GatewayName::Gateway { namespace: "ns".into(), name: "g".into() }],
        export_to: None,
        http: vec![HttpRule {
            field: "spec.http[0]".into(),
            name: None,
            matches: vec![],
            action: HttpAction::Forward(Forward {
                destinations: vec![WeightedDestination {
                    field: "spec.http[0].route[0]".into(),
                    destination: Destination { host: host(1), subset: None, port: None },
                    weight: 1,
                }],
                rewrite: Rewrite::default(),
                timeout: None,
                retries: None,
            }),
        }],
    };
    let service = Service {
        host: host(1),
        namespace: "ns".into(),
        name: "s1".into(),
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            target: TargetPort::Number(8080),
        }],
        selector: BTreeMap::new(),
        export_to: Some(DefaultVisibility::own().of(&"ns".into())),
    };
    let private = Mesh {
        connect_timeout: std::time::Duration::from_secs(1),
        rules_export_to: DefaultVisibility::own(),
        ..Mesh::default()
    };
    let change = |kind, name, rows| Change { owner: owner(kind, name), rows };
    let mut engine = Engine::new();
    let mut mirror = Mirror::default();
    // At first only the proxy in `ns` has the rules, and a cluster that answers 503.
    mirror.take(engine.apply(Batch {
        changes: vec![
            change("Gateway", "g", vec![Row::Gateway(gateway)]),
            change("VirtualService", "r", vec![Row::RouteRules(rules)]),
            change("MeshConfig", "mesh", vec![Row::Mesh(private)]),
        ],
        connected: proxies(),
        disconnected: vec![],
    }));
    // Then it gets the service, and the proxy in `other` that cluster, with another timeout.
    let changes = vec![
        change("MeshConfig", "mesh", vec![]),
        change("Service", "s1", vec![Row::Service(service)]),
    ];
    let update = engine.apply(Batch { changes, ..Batch::default() });
    let told: Vec<_> = update.resources.iter().map(|(id, _)| *id).collect();
    assert_eq!(told.len(), told.iter().collect::<BTreeSet<_>>().len());
    mirror.take(update);
    assert_eq!(engine.verify(), Vec::<String>::new());
}
