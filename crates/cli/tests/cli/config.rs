//! `heddle config`: the right proxy, the right rows, and where each comes from.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::{Folder, NODE, Ran};

/// A gateway with rules of every sort.
const MESH: &str = r#"apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: edge}
spec:
  selector: {app: gw}
  servers: [{port: {number: 8080, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: edge}
spec:
  hosts: [shop.example.com, b.example.com]
  gateways: [edge]
  http:
  - match:
    - {uri: {prefix: /api}, headers: {end-user: {exact: jason}}}
    - {uri: {exact: /v2}, withoutHeaders: {old: {}}}
    route: [{destination: {host: shop, subset: v2, port: {number: 80}}}]
  - match: [{uri: {regex: "/x.*"}, queryParams: {q: {exact: "1"}}}]
    redirect: {uri: /y, authority: other.example.com}
  - match: [{uri: {prefix: /no}}]
    directResponse: {status: 403}
  - route:
    - {destination: {host: shop, subset: v1, port: {number: 80}}, weight: 2}
    - {destination: {host: shop, subset: v2, port: {number: 80}}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: edge}
spec: {host: shop, subsets: [{name: v1, labels: {v: "1"}}, {name: v2, labels: {v: "2"}}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: edge}
spec: {ports: [{port: 80, name: http}, {port: 3306, name: tcp}], clusterIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-1, namespace: edge, labels: {v: "1"}}
status: {podIP: 10.1.0.1}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, namespace: edge, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp, port: 3306}]
endpoints: [{addresses: [10.1.0.1], zone: zone-a, targetRef: {kind: Pod, name: shop-1}}]
"#;

const SIDECAR: &str = "sidecar~10.0.0.8~web-1.edge~edge.svc.cluster.local";

/// A controller that answers with the dump that `render` makes of each of these proxies, as many
/// times as it is asked.
fn controller(proxies: &[&str]) -> String {
    let folder = Folder::with("mesh.yaml", MESH);
    let dumps: BTreeMap<String, String> = proxies
        .iter()
        .map(|id| {
            let args = ["render", "-f", ".", "--node", id, "--labels", "app=gw"];
            ((*id).to_owned(), folder.run(&args).dump().to_string())
        })
        .collect();
    let streams = proxies.iter().zip(1..).map(|(id, stream)| {
        json!({ "proxy": id, "stream": stream, "connectedSince": "2026-01-01T00:00:00Z" })
    });
    let streams = Value::Array(streams.collect()).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).replace("%7E", "~");
            let request = request.replace("%2E", ".").replace("%2D", "-");
            let asked = request.split("proxyID=").nth(1).and_then(|r| r.split(' ').next());
            let body = match asked {
                None => Some(&streams),
                Some(id) => dumps.get(id),
            };
            let answer = match body {
                Some(body) => {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                }
                None => "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

fn config(address: &str, args: &[&str]) -> Ran {
    let mut all = vec!["config", "--admin", address];
    all.extend(args);
    Folder::new().run(&all)
}

/// Lines of a table, with single spaces.
fn rows(ran: &Ran) -> Vec<String> {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let tidy = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    ran.out.lines().map(tidy).collect()
}

#[test]
fn given_routes_then_each_row_says_what_is_done_when_and_where_it_is_written() {
    let address = controller(&[NODE]);
    let rows = rows(&config(&address, &["gw-1", "routes", "--fqdn", "shop.example.com"]));
    let to = |subset: &str| format!("outbound|80|{subset}|shop.edge.svc.cluster.local");
    let (v1, v2) = (to("v1"), to("v2"));
    let expected = [
        "NAME DOMAINS MATCH DESTINATION FROM".to_owned(),
        format!("http.8080 shop.example.com /api* {v2} VirtualService edge/shop spec.http[0].match[0] (./mesh.yaml:16)"),
        "header end-user = jason".to_owned(),
        format!("http.8080 shop.example.com /v2 {v2} VirtualService edge/shop spec.http[0].match[1] (./mesh.yaml:17)"),
        "header old is not there".to_owned(),
        "http.8080 shop.example.com regex /x.* redirects to other.example.com /y VirtualService edge/shop spec.http[1].match[0] (./mesh.yaml:19)".to_owned(),
        "query q = 1".to_owned(),
        "http.8080 shop.example.com /no* answers 403 VirtualService edge/shop spec.http[2].match[0] (./mesh.yaml:21)".to_owned(),
        format!("http.8080 shop.example.com /* {v1} (66.7%) VirtualService edge/shop spec.http[3] (./mesh.yaml:23)"),
        format!("{v2} (33.3%)"),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn given_each_kind_then_its_table_has_the_columns_that_people_know() {
    let address = controller(&[NODE]);
    let listeners = rows(&config(&address, &["gw-1", "listeners"]));
    assert_eq!(listeners[0], "ADDRESS PORT MATCH DESTINATION FROM");
    assert_eq!(
        listeners[1],
        "0.0.0.0 8080 ALL Route: http.8080 Gateway edge/edge spec.servers[0] (./mesh.yaml:6)"
    );
    let clusters = rows(&config(&address, &["gw-1", "c", "--subset", "v2"]));
    assert_eq!(clusters[0], "HOST PORT SUBSET DIRECTION TYPE FROM");
    assert!(
        clusters[1].starts_with("shop.edge.svc.cluster.local 80 v2 outbound EDS Service edge/shop"),
        "{clusters:?}"
    );
    assert!(clusters[2].starts_with("DestinationRule edge/shop spec.subsets[1]"), "{clusters:?}");
    let endpoints = rows(&config(&address, &["gw-1", "endpoints"]));
    assert_eq!(endpoints[0], "ENDPOINT STATUS LOCALITY CLUSTER FROM");
    assert!(
        endpoints[1].starts_with("10.1.0.1:8080 HEALTHY /zone-a outbound|80|v1|shop.edge"),
        "{endpoints:?}"
    );
    let all = rows(&config(&address, &["gw-1"]));
    let headers = all.iter().filter(|row| row.ends_with(" FROM")).count();
    assert_eq!(headers, 4, "{all:?}");
}

#[test]
fn given_a_sidecar_then_chains_and_tcp_are_shown_and_filters_hold() {
    let address = controller(&[SIDECAR]);
    let listeners = rows(&config(&address, &["web-1", "l"]));
    for row in [
        "0.0.0.0 80 App: http/1.0,http/1.1,h2c Route: 80",
        "0.0.0.0 80 ALL Cluster: PassthroughCluster",
        "10.0.0.1 3306 ALL Cluster: outbound|3306||shop.edge.svc.cluster.local",
        "0.0.0.0 15001 ALL Cluster: PassthroughCluster",
    ] {
        assert!(listeners.iter().any(|l| l.starts_with(row)), "{row} is not in {listeners:#?}");
    }
    let of = |args: &[&str]| rows(&config(&address, args)).len() - 1;
    assert_eq!(of(&["web-1", "l", "--port", "3306"]), 2, "out, and in");
    assert_eq!(of(&["web-1", "l", "--fqdn", "shop.edge"]), 4, "HTTP by its routes, TCP, and in");
    assert_eq!(of(&["web-1", "l", "--name", "virtualOutbound"]), 1);
    assert_eq!(of(&["web-1", "c", "--fqdn", "shop", "--port", "80"]), 1);
    assert_eq!(of(&["web-1", "c", "--fqdn", "sho"]), 0, "no half words");
    let none = config(&address, &["web-1", "c", "--fqdn", "nobody"]);
    none.says(0, &["is sent nothing that fits"]);
    let json = config(&address, &["web-1", "r", "--port", "80", "-o", "json"]).dump();
    let routes = &json["configs"][0]["dynamic_route_configs"];
    assert_eq!(routes[0]["route_config"]["name"], "80");
    assert!(routes[1].is_null() && json["configs"][1].is_null(), "{json:#}");
    let yaml = config(&address, &["web-1", "e", "-o", "yaml"]);
    yaml.says(2, &["invalid value 'e'"]);
    let yaml = config(&address, &["web-1", "ep", "-o", "yaml"]);
    assert!(yaml.out.starts_with("configs:\n"), "{}", yaml.out);
}

#[test]
fn given_a_name_then_it_is_understood_if_it_can_mean_only_one_proxy() {
    let address = controller(&[NODE, SIDECAR, "sidecar~10.0.0.7~gw.edge~edge.svc.cluster.local"]);
    let first = |name: &str| {
        let ran = config(&address, &[name, "l", "-o", "json"]);
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.err);
        let text = ran.out;
        if text.contains("virtualOutbound") { "sidecar" } else { "gateway" }
    };
    for name in [NODE, "gw-1.edge", "edge/gw-1", "gw-1", "gw-", "router~"] {
        assert_eq!(first(name), "gateway", "{name}");
    }
    for name in [SIDECAR, "web", "edge/web-1", "gw", "gw.edge"] {
        assert_eq!(first(name), "sidecar", "{name}");
    }
    config(&address, &["edge/"]).says(1, &["may be any of", "gw-1.edge", "web-1.edge"]);
    config(&address, &["nobody"]).says(1, &["no proxy \"nobody\" is connected", "web-1.edge"]);
    config(&controller(&[]), &["x"]).says(1, &["no proxy is connected"]);
    config("127.0.0.1:1", &["x"]).says(1, &["no controller answers at 127.0.0.1:1"]);
    Folder::new().run(&["config"]).says(2, &["PROXY"]);
    Folder::new().run(&["config", "x", "wrong"]).says(2, &["listeners", "routes", "all"]);
}
