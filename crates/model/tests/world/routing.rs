//! Rules, policies and gateways.

use super::*;

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

pub(super) fn rules() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
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

pub(super) fn policy() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
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

pub(super) fn gateway() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
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
