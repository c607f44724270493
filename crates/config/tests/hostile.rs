//! Texts that nobody meant: random ones, cut ones, ones with a flipped byte, huge ones.
//!
//! **Invariant:** whatever the text, reading and lowering end, and every problem has a place in it.

#![allow(clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "tests")]

use std::sync::Arc;

use config::yaml::{Entry, Mark, Node, Value};
use config::{KINDS, RawObject};
use model::ObjectRef;
use proptest::prelude::*;

/// One of everything, good.
const GOOD: &str = r#"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop, labels: {app: shop}, creationTimestamp: "2024-02-29T12:34:56Z"}
spec:
  hosts: [shop.example.com, "*.shop.com"]
  gateways: [edge, mesh]
  http:
  - name: canary
    match:
    - uri: {regex: "/a/[0-9]+"}
      headers: {x-user: {exact: jason}, x-any: {}}
      queryParams: {q: {prefix: a}}
    rewrite: {uriRegexRewrite: {match: "^/(a|b)", rewrite: '/\1'}}
    timeout: 1.5s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,503"}
    route:
    - destination: {host: shop, subset: v1, port: {number: 80}}
      weight: 90
    - &to
      destination: {host: shop, subset: v2}
      weight: 10
  - redirect: {uri: /x, redirectCode: 308}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  trafficPolicy:
    outlierDetection: {consecutiveErrors: 7, interval: 1s, outlierDetectionHttpErrorCodes: [500]}
    connectionPool: {tcp: {maxConnections: 10}, http: {http2MaxRequests: 5}}
  subsets: [{name: v1, labels: {version: v1}}]
---
{"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
 "spec": {"selector": {"a": "b"}, "servers": [{"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["*"]}]}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: shop}, spec: {ports: [{port: 80, targetPort: http}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: shop-1}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: shop-x, labels: {kubernetes.io/service-name: shop}}
  endpoints: [{addresses: [10.0.0.1]}]
  ports: [{name: http, port: 8080}]
"#;

/// Pieces that YAML is made of, good and bad.
const PIECES: &[&str] = &[
    "---\n",
    "...\n",
    "- ",
    "? ",
    ": ",
    "\n",
    "  ",
    "    ",
    "\t",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "#",
    "!!str ",
    "!x ",
    "%YAML 1.2\n",
    "\\",
    "\u{feff}",
    "\0",
    "é",
    "<<: ",
    "apiVersion: v1\n",
    "apiVersion: networking.istio.io/v1\n",
    "kind: VirtualService\n",
    "kind: Service\n",
    "kind: List\n",
    "items:\n",
    "metadata:\n  name: a\n",
    "metadata: {name: a}\n",
    "spec:\n",
    "http:\n",
    "- route:\n",
    "weight: ",
    "-1",
    "0x",
    "1e999",
    "~",
];

/// Read and lower; every place must be within the text.
fn go_through(text: &str) {
    // In YAML a carriage return alone ends a line as well.
    let lines = u32::try_from(text.matches(['\n', '\r']).count() + 1).expect("small");
    let read = config::read(&Arc::from("test"), text);
    for error in &read.syntax {
        assert!(error.at.line <= lines, "{error}\n{text:?}");
    }
    for located in &read.problems {
        assert!(located.at.line <= lines, "{located:?}\n{text:?}");
    }
    for raw in read.objects {
        let (_, problems) = config::lower(raw.clone());
        for problem in problems {
            let at = raw.locate(&problem.field);
            assert!((1..=lines).contains(&at.line), "{problem} at {at:?}\n{text:?}");
        }
    }
    if let Ok(raw) = config::read_mesh_config(&Arc::from("test"), text) {
        config::lower(raw);
    }
}

fn node(value: Value) -> Node {
    Node { value, at: Mark { line: 1, column: 1 } }
}

/// Keys that objects have, so that random bodies get past the first check.
fn key() -> impl Strategy<Value = String> {
    let known = [
        "spec",
        "metadata",
        "labels",
        "name",
        "namespace",
        "hosts",
        "http",
        "match",
        "uri",
        "exact",
        "regex",
        "headers",
        "route",
        "destination",
        "host",
        "port",
        "number",
        "weight",
        "subsets",
        "trafficPolicy",
        "outlierDetection",
        "interval",
        "servers",
        "selector",
        "protocol",
        "ports",
        "targetPort",
        "endpoints",
        "addresses",
        "conditions",
        "status",
        "podIPs",
        "ip",
        "containers",
        "timeout",
        "retries",
        "retryOn",
        "redirect",
        "rewrite",
        "gateways",
        "kubernetes.io/service-name",
        "rootNamespace",
        "a.b[0]",
        "",
    ];
    proptest::sample::select(known.to_vec()).prop_map(str::to_owned)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        (-5_i64..700).prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Number),
        "\\PC{0,12}".prop_map(Value::String),
        proptest::sample::select(
            &["a", "a.com", "5s", "HTTP", "*", "10.0.0.1", "web", "/a", "(", "1h"][..]
        )
        .prop_map(|t| Value::String(t.to_owned())),
    ]
}

fn body() -> impl Strategy<Value = Node> {
    scalar().prop_map(node).prop_recursive(7, 96, 6, |inner| {
        let entry = |(key, value, duplicate): (String, Node, bool)| Entry {
            key,
            at: Mark { line: 1, column: 1 },
            duplicate,
            value,
        };
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| node(Value::List(items))),
            3 => proptest::collection::vec((key(), inner, proptest::bool::weighted(0.05)), 0..7)
                .prop_map(move |all| node(Value::Map(all.into_iter().map(entry).collect()))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn given_random_bytes_then_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        go_through(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn given_random_text_that_looks_like_yaml_then_reading_ends(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..60),
    ) {
        go_through(&pieces.concat());
    }

    #[test]
    fn given_a_good_text_cut_anywhere_then_reading_ends(end in 0..GOOD.len()) {
        go_through(&GOOD[..end]);
    }

    #[test]
    fn given_a_good_text_with_a_flipped_byte_then_reading_ends(at in 0..GOOD.len(), with: u8) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes[at] ^= with;
        go_through(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn given_a_good_text_with_a_piece_put_in_then_reading_ends(
        at in 0..GOOD.len(), piece in proptest::sample::select(PIECES),
    ) {
        go_through(&format!("{}{piece}{}", &GOOD[..at], &GOOD[at..]));
    }

    #[test]
    fn given_a_random_body_then_every_kind_can_be_lowered(body in body()) {
        for known in KINDS {
            let owner = Arc::new(ObjectRef {
                source: "test".into(),
                kind: known.kind_name(),
                namespace: "default".into(),
                name: "mesh".into(),
            });
            let (_, problems) = config::lower(RawObject::new(owner, body.clone(), 0));
            for problem in problems {
                prop_assert!(body.locate(&problem.field).line <= 1, "{}", problem);
            }
        }
    }
}

#[test]
fn given_the_good_text_then_it_has_no_problem() {
    let read = config::read(&Arc::from("test"), GOOD);
    assert_eq!((read.objects.len(), read.problems, read.syntax), (7, vec![], vec![]));
    for raw in read.objects {
        let (change, problems) = config::lower(raw);
        assert_eq!((change.rows.len(), problems), (1, vec![]));
    }
}

#[test]
fn given_windows_line_ends_a_byte_order_mark_or_a_directive_then_the_text_is_read_all_the_same() {
    let directive = format!("%YAML 1.2\n---\n{GOOD}");
    for text in [
        GOOD.replace('\n', "\r\n"),
        format!("\u{feff}{GOOD}"),
        format!("\u{feff}---\n{GOOD}"),
        directive,
    ] {
        let read = config::read(&Arc::from("test"), &text);
        assert_eq!(
            (read.objects.len(), read.problems, read.syntax),
            (7, vec![], vec![]),
            "{:?}",
            &text[..20]
        );
    }
}

#[test]
fn given_bombs_then_they_are_refused_and_the_next_document_is_read() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    let loops = "a: &a [*a]\n".to_owned();
    for bomb in [
        bomb,
        loops,
        "[".repeat(50_000),
        "{a: ".repeat(50_000),
        "- ".repeat(50_000),
        "? ".repeat(50_000),
    ] {
        let read = config::read(&Arc::from("test"), &format!("{bomb}\n---\n{GOOD}"));
        assert_eq!((read.syntax.len(), read.objects.len()), (1, 7), "{:?}", &bomb[..10]);
    }
}

/// Prints how long a large text takes; asserts only that it is not quadratic.
#[test]
fn given_ten_megabytes_of_services_then_they_are_read_in_reasonable_time() {
    let started = std::time::Instant::now();
    let service = |i: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: service-{i}\n  namespace: shop\n  labels: \
             {{app: service-{i}, filler: {}}}\nspec:\n  selector: {{app: service-{i}}}\n  ports:\n  - \
             {{name: http, port: 80, targetPort: 8080}}\n---\n",
            "x".repeat(330)
        )
    };
    let text: String = (0..20_000).map(service).collect();
    let read = config::read(&Arc::from("test"), &text);
    assert_eq!((read.objects.len(), read.problems.len(), read.syntax.len()), (20_000, 0, 0));
    let took = started.elapsed();
    println!("{} MB read in {took:?}", text.len() >> 20);
    assert!(took.as_secs() < 60, "{took:?}");
}
