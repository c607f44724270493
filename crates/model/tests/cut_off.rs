//! What runs again after an edit, and what is left alone.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    Destination, DestinationPolicy, Forward, Gateway, GatewayName, HostPattern, HostScope,
    HttpAction, HttpRule, LbAlgorithm, Mesh, Protocol, Rewrite, RouteRules, Server, Service,
    ServicePort, TargetPort, TrafficPolicy, WeightedDestination,
};
use model::{
    Batch, Capabilities, Change, Engine, Kind, ObjectRef, Proxy, ProxyKey, Row, Update, ir,
};

const HOST: &str = "shop.ns.svc.cluster.local";

fn change(kind: &'static str, row: Row) -> Change {
    let owner = ObjectRef {
        source: "test".into(),
        kind: Kind { name: kind.into(), group: "".into() },
        namespace: "ns".into(),
        name: "shop".into(),
    };
    Change { owner: Arc::new(owner), rows: vec![row] }
}

fn gateway() -> Change {
    let row = Gateway {
        namespace: "ns".into(),
        name: "edge".into(),
        created: None,
        selector: BTreeMap::new(),
        servers: vec![Server {
            field: "spec.servers[0]".into(),
            port: 80,
            bind: None,
            hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
        }],
    };
    change("Gateway", Row::Gateway(row.into()))
}

fn service() -> Change {
    let port = ServicePort {
        number: 80,
        name: "http".into(),
        protocol: Protocol::Http,
        target: TargetPort::Number(8080),
    };
    let row = Service {
        host: HOST.into(),
        namespace: "ns".into(),
        name: "shop".into(),
        export_to: None,
        addresses: vec![],
        ports: vec![port],
        selector: BTreeMap::new(),
        ..Service::default()
    };
    change("Service", Row::Service(row.into()))
}

fn policy(load_balancer: LbAlgorithm) -> Change {
    let row = DestinationPolicy {
        namespace: "ns".into(),
        created: None,
        export_to: None,
        host: HOST.into(),
        field: "spec.trafficPolicy".into(),
        policy: TrafficPolicy {
            load_balancer: Some(load_balancer.into()),
            ..TrafficPolicy::default()
        },
        subsets: vec![],
    };
    change("DestinationRule", Row::DestinationPolicy(row.into()))
}

/// Two destinations: one that exists, and one that does not.
fn rules(weight: u32) -> Change {
    let to = |host: &str, weight| WeightedDestination {
        field: "spec.http[0].route[0]".into(),
        destination: Destination { host: host.into(), subset: None, port: None },
        weight,
    };
    let row = RouteRules {
        namespace: "ns".into(),
        created: None,
        export_to: None,
        hosts: vec!["shop.example.com".into()],
        gateways: vec![GatewayName::Gateway { namespace: "ns".into(), name: "edge".into() }],
        http: vec![HttpRule {
            field: "spec.http[0]".into(),
            name: None,
            matches: vec![],
            action: HttpAction::Forward(Forward {
                destinations: vec![to(HOST, weight), to("nowhere", 1)],
                rewrite: Rewrite::default(),
                timeout: None,
                retries: None,
            }),
        }],
        tls: vec![],
        tcp: vec![],
    };
    change("VirtualService", Row::RouteRules(row.into()))
}

/// An engine with one gateway proxy, after an edit.
fn after(edit: Change) -> Update {
    let mut engine = Engine::new();
    let full = Capabilities { vhds: true, mutual_tls: false };
    let proxy = Proxy::parse("router~1.1.1.1~edge.ns~ns", None, full).expect("valid");
    let changes = vec![gateway(), service(), policy(LbAlgorithm::Random), rules(1)];
    engine.apply(Batch { changes, connected: vec![(ProxyKey(1), proxy)], disconnected: vec![] });
    engine.apply(Batch { changes: vec![edit], ..Batch::default() })
}

fn told(update: &Update) -> Vec<String> {
    let resources = update.resources.iter();
    resources.filter_map(|(_, r)| Some(r.as_ref()?.name().to_string())).collect()
}

fn ran(update: &Update) -> Vec<(String, bool)> {
    update.ran.iter().map(|r| (r.to_string(), r.differs)).collect()
}

#[test]
fn given_a_weight_that_differs_then_only_readers_of_the_rule_run_and_one_resource_differs() {
    let update = after(rules(2));
    assert_eq!(told(&update), ["http.80/shop.example.com"]);
    let mut ran = ran(&update);
    ran.sort();
    let cluster = "cluster outbound|80||nowhere".to_owned();
    let expected = [
        (cluster, false),
        ("conditions of VirtualService ns/shop that do not hold for ns".to_owned(), false),
        ("destinations of VirtualService ns/shop for ns".to_owned(), false),
        ("hosts and gateways of VirtualService ns/shop".to_owned(), false),
        ("problems of VirtualService ns/shop".to_owned(), false),
        ("virtual host http.80/shop.example.com".to_owned(), true),
    ];
    assert_eq!(ran, expected);
}

#[test]
fn given_another_load_balancer_then_the_cluster_differs_and_nothing_else() {
    let update = after(policy(LbAlgorithm::RoundRobin));
    assert_eq!(told(&update), [format!("outbound|80||{HOST}")]);
    assert!(update.scopes.is_empty() && update.layers.is_empty());
}

#[test]
fn given_an_authority_then_its_trust_domain_counts_and_not_that_of_the_settings() {
    let mesh = Mesh { trust_domain: "settings.test".into(), ..Mesh::default() };
    let settings = change("MeshConfig", Row::Mesh(mesh.into()));
    let agent = Capabilities { vhds: true, mutual_tls: true };
    let proxy = Proxy::parse("sidecar~1.1.1.1~a.ns~ns", None, agent).expect("valid");
    for (mut engine, expected) in [
        (Engine::new(), "settings.test"),
        (Engine::of_trust_domain("authority.test".into()), "authority.test"),
    ] {
        let connected = vec![(ProxyKey(1), proxy.clone())];
        let changes = vec![settings.clone()];
        engine.apply(Batch { changes, connected, disconnected: vec![] });
        let found = engine.resources_of(ProxyKey(1)).into_values().find_map(|r| match &*r {
            ir::Resource::Listener(listener) => match &listener.serves {
                ir::Serves::Inbound { trust_domain, .. } => Some(trust_domain.to_string()),
                _ => None,
            },
            _ => None,
        });
        assert_eq!(found.as_deref(), Some(expected));
        assert_eq!(engine.verify(), [""; 0]);
    }
}
