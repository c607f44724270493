//! The pages that say what the mesh is made of and who sees what of it, and the index.

use serde_json::{Value, json};

use super::xds::{ID, Proxy, node};
use super::{Controller, Folder, MESH, exchange, until};

/// Beside `MESH`: endpoints of its service, and services of other namespaces.
const MORE: &str = r#"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, namespace: edge, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], nodeName: node-a, zone: zone-a, targetRef: {kind: Pod, name: shop-1}}
- {addresses: [10.1.0.2], conditions: {ready: false}}
- {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data, annotations: {networking.istio.io/exportTo: "., web"}}
spec: {clusterIP: 10.0.0.7, ports: [{port: 3306, name: tcp, targetPort: sql}], selector: {app: db}}
---
apiVersion: v1
kind: Service
metadata: {name: ads, namespace: other}
spec: {clusterIP: 10.0.0.8, ports: [{port: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: web}
spec:
  workloadSelector: {labels: {app: gw}}
  egress: [{hosts: ["data/*", "edge/shop.edge.svc.cluster.local"]}]
"#;

/// A headless service, another name for a service, and a block of addresses outside.
const KINDS: &str = r#"apiVersion: v1
kind: Service
metadata: {name: pods, namespace: kinds}
spec: {clusterIP: None, ports: [{port: 80, name: http}], selector: {app: pods}}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: kinds}
spec: {type: ExternalName, externalName: shop.edge.svc.cluster.local}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: sql, namespace: kinds}
spec:
  hosts: [sql.example.com]
  addresses: [192.0.2.1, 198.51.100.0/24]
  ports: [{number: 3306, name: tcp, protocol: TCP}]
  resolution: NONE
"#;

const SIDECAR: &str = "sidecar~10.0.0.8~web-1.web~web.svc.cluster.local";
const WIDE: &str = "sidecar~10.0.0.8~ads-1.other~other.svc.cluster.local";

fn page(controller: &Controller, path: &str) -> Value {
    let (status, body) = controller.debug(path);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

fn running() -> (Folder, Controller) {
    let folder = Folder::with("mesh.yaml", MESH);
    folder.write("more.yaml", MORE);
    let controller = Controller::on(folder.path());
    (folder, controller)
}

#[test]
fn given_services_then_registryz_has_each_with_host_addresses_and_ports() {
    let (folder, controller) = running();
    let found = page(&controller, "/debug/registryz");
    let hosts: Vec<_> = found.as_array().expect("a list").iter().map(|s| &s["hostname"]).collect();
    assert_eq!(
        hosts,
        ["db.data.svc.cluster.local", "shop.edge.svc.cluster.local", "ads.other.svc.cluster.local"]
    );
    assert_eq!(
        found[0],
        json!({
            "hostname": "db.data.svc.cluster.local", "namespace": "data", "name": "db",
            "object": "Service data/db", "source": "directory", "addresses": ["10.0.0.7"],
            "blocks": [], "headless": false, "resolution": "STATIC", "aliasOf": null,
            "ports": [{ "port": 3306, "name": "tcp", "protocol": "TCP", "targetPort": "sql" }],
            "selector": { "app": "db" }, "exportTo": ["data", "web"],
        })
    );
    folder.write("kinds.yaml", KINDS);
    let added = until("three more services", || {
        let all = page(&controller, "/debug/registryz");
        let all = all.as_array().cloned()?;
        let added: Vec<_> = all.into_iter().filter(|s| s["namespace"] == "kinds").collect();
        (added.len() == 3).then_some(added)
    });
    let mut added: Vec<_> = added
        .iter()
        .map(|s| {
            let facts = ["addresses", "blocks", "headless", "resolution", "aliasOf"];
            json!([s["hostname"], facts.map(|fact| &s[fact])])
        })
        .collect();
    added.sort_by_key(ToString::to_string);
    assert_eq!(
        added,
        [
            json!([
                "alias.kinds.svc.cluster.local",
                [[], [], false, "DNS", "shop.edge.svc.cluster.local"]
            ]),
            json!(["pods.kinds.svc.cluster.local", [[], [], true, "STATIC", null]]),
            json!(["sql.example.com", [["192.0.2.1"], ["198.51.100.0/24"], false, "NONE", null]]),
        ]
    );
    std::fs::remove_file(folder.path().join("kinds.yaml")).expect("removed");
    std::fs::remove_file(folder.path().join("more.yaml")).expect("removed");
    until("only one service", || {
        (page(&controller, "/debug/registryz").as_array()?.len() == 1).then_some(())
    });
}

#[test]
fn given_endpoints_then_endpointz_has_each_with_its_state_and_where_it_runs() {
    let (_folder, controller) = running();
    let found = page(&controller, "/debug/endpointz");
    let of_shop = found.as_array().expect("a list").iter().find(|s| s["port"] == 80);
    let of_shop = of_shop.expect("a port");
    assert_eq!(of_shop["hostname"], "shop.edge.svc.cluster.local");
    assert_eq!(of_shop["portName"], "http");
    let endpoints = &of_shop["endpoints"];
    assert_eq!(
        endpoints[0],
        json!({
            "address": "10.1.0.1", "port": 8080, "state": "ready", "workload": "shop-1",
            "node": "node-a", "zone": "zone-a", "object": "EndpointSlice edge/shop-1",
        })
    );
    assert_eq!(
        (&endpoints[1]["state"], &endpoints[2]["state"]),
        (&"notReady".into(), &"draining".into())
    );
    let db = found.as_array().expect("a list").iter().find(|s| s["port"] == 3306);
    assert_eq!(db.expect("a port")["endpoints"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn given_proxies_then_scopez_says_what_each_may_reach_and_what_decides_that() {
    let (_folder, controller) = running();
    let mut proxies = Vec::new();
    for id in [ID, SIDECAR, WIDE] {
        let mut proxy = Proxy::connect(&controller, node(id, 40)).await;
        proxy.next().await;
        proxies.push(proxy);
    }
    let scope = |id: &str| page(&controller, &format!("/debug/scopez?proxyID={id}"));
    let gateway = scope(ID);
    assert_eq!(gateway["role"], "gateway");
    assert_eq!(gateway["gateways"], json!(["Gateway edge/edge"]));
    assert_eq!(gateway["hosts"], json!({ "http.8080": ["*", "shop.example.com"] }));
    assert_eq!(gateway["services"], json!(["Service edge/shop"]));
    assert_eq!(gateway["layers"].as_array().map(Vec::len), Some(1), "{gateway:#}");

    let narrow = scope(SIDECAR);
    assert_eq!((&narrow["role"], &narrow["namespace"]), (&"sidecar".into(), &"web".into()));
    assert_eq!(narrow["sidecar"], "Sidecar web/narrow");
    assert_eq!(narrow["namespaces"], json!({ "data": 1, "edge": 1 }), "{narrow:#}");
    assert_eq!(narrow["services"], json!(["Service data/db", "Service edge/shop"]));
    assert_eq!(narrow["hosts"]["80"], json!(["*", "shop.edge.svc.cluster.local"]));

    let wide = scope(WIDE);
    assert_eq!(wide["sidecar"], Value::Null);
    let of: Vec<_> = wide["layers"].as_array().expect("a list").iter().map(|l| &l["of"]).collect();
    assert_eq!(of, ["everybody", "namespace other", "proxies of this scope"]);
    assert!(wide["layers"][0]["sets"].as_u64() > Some(3), "{wide:#}");
    assert_eq!(wide["namespaces"], json!({ "edge": 1, "other": 1 }), "db is not for it");

    for path in ["/debug/scopez", "/debug/scopez?proxyID="] {
        let (status, body) = controller.debug(path);
        assert_eq!((status, body.contains("/debug/scopez?proxyID=ID")), (400, true), "{body}");
    }
    assert_eq!(controller.debug("/debug/scopez?proxyID=nobody").0, 404);
    // What a scope was is forgotten with its last proxy.
    proxies.clear();
    until("no proxy", || (page(&controller, "/debug/syncz") == json!([])).then_some(()));
    assert_eq!(controller.debug(&format!("/debug/scopez?proxyID={SIDECAR}")).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_person_then_the_index_has_every_page_and_the_proxies_and_no_script() {
    let (_folder, controller) = running();
    let empty = controller.debug("/").1;
    assert!(empty.contains("None is connected") && empty.contains("Ready. 8 objects"), "{empty}");
    let mut proxy = Proxy::connect(&controller, node(ID, 40)).await;
    proxy.next().await;
    let (status, head, body) = exchange(controller.admin, "GET", "/debug/", "localhost");
    assert_eq!(status, 200);
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'unsafe-inline'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    for text in ["<html lang=\"en\">", "<title>", "<caption>", "scope=\"col\"", ID] {
        assert!(body.contains(text), "{text} is not in {body}");
    }
    assert!(!body.contains("<script") && !body.contains("//"), "{body}");
    let links: Vec<&str> =
        body.split("href=\"").skip(1).filter_map(|l| l.split('"').next()).collect();
    let pages = ["syncz", "configz", "registryz", "endpointz", "pushz", "sourcez", "logging"];
    for name in pages {
        assert!(links.contains(&format!("/debug/{name}").as_str()), "{name}: {links:?}");
    }
    for link in links.iter().filter(|l| **l != "/debug/ca") {
        let (status, _) = controller.debug(link);
        assert_eq!(status, 200, "{link}");
    }
    assert_eq!(links.iter().filter(|l| l.contains("proxyID=")).count(), 2, "{links:?}");
}
