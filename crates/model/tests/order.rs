//! Whatever the history, the same objects give the same output.
//!
//! Random batches of changes to a small world, then the same final objects all at once, in another
//! order: resources, problems and what streams are told must be equal. `PROPTEST_CASES` asks for
//! more histories.
#![allow(clippy::expect_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::rows::{
    DefaultVisibility, Destination, Forward, Gateway, GatewayName, HostPattern, HostScope,
    HttpAction, HttpRule, Mesh, Protocol, Rewrite, RouteRules, Server, Service, ServicePort,
    TargetPort, WeightedDestination, Workload,
};
use model::{Batch, Change, Engine, ObjectRef, ProxyKey, Row};
use proptest::prelude::*;
use world::{Mirror, host, labels, owner, proxies, row, seen};

type Step = ((Arc<ObjectRef>, Row), bool);

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
        prop_assert!(again.layers.is_empty());
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
        Change { owner: owner("Gateway", "g"), rows: vec![Row::Gateway(row.into())] }
    };
    let pod = |value| {
        let row = Workload {
            namespace: "ns".into(),
            name: "p0".into(),
            labels: labels(&[("gw", value)]),
            addresses: vec![],
            service_account: "default".into(),
            ready: true,
            ..Workload::default()
        };
        Change { owner: owner("Pod", "p0"), rows: vec![Row::Workload(row.into())] }
    };
    let mut engine = Engine::new();
    let mut mirror = Mirror::default();
    mirror.take(engine.apply(Batch {
        changes: vec![gateway(labels(&[("gw", "1")])), pod("0")],
        connected: proxies().into_iter().take(1).collect(),
        disconnected: vec![],
    }));
    let members = |m: &Mirror| m.view(ProxyKey(1)).len();
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
        tls: vec![],
        tcp: vec![],
    };
    let service = Service {
        host: host(1),
        namespace: "ns".into(),
        name: "s1".into(),
        addresses: vec![],
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            target: TargetPort::Number(8080),
        }],
        selector: BTreeMap::new(),
        export_to: Some(DefaultVisibility::own().of(&"ns".into())),
        ..Service::default()
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
            change("Gateway", "g", vec![Row::Gateway(gateway.into())]),
            change("VirtualService", "r", vec![Row::RouteRules(rules.into())]),
            change("MeshConfig", "mesh", vec![Row::Mesh(private.into())]),
        ],
        connected: proxies(),
        disconnected: vec![],
    }));
    // Then it gets the service, and the proxy in `other` that cluster, with another timeout.
    let changes = vec![
        change("MeshConfig", "mesh", vec![]),
        change("Service", "s1", vec![Row::Service(service.into())]),
    ];
    let update = engine.apply(Batch { changes, ..Batch::default() });
    let told: Vec<_> = update.resources.iter().map(|(id, _)| *id).collect();
    assert_eq!(told.len(), told.iter().collect::<BTreeSet<_>>().len());
    mirror.take(update);
    assert_eq!(engine.verify(), Vec::<String>::new());
}
