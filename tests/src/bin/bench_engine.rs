//! Measures the engine alone: objects in, encoded bytes out, on one thread.
//!
//! In: a made-up mesh of 10,000 services on port 80 in 200 namespaces, with 100,000 endpoints in
//! three zones; 500 groups of sidecars, a fifth of the namespaces with a private DestinationRule, a
//! tenth with Sidecars; 1,000 hosts routed in the mesh and 1,000 behind one gateway. Out: a table;
//! each figure stands beside a plain re-encode of the same resource in the same run.
//!
//! **Invariant:** every edit is new content, checked to give the bytes it must; the median of many.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::rows::{
    Destination, DestinationPolicy, EgressListener, Endpoint, EndpointSlice, Forward, Gateway,
    GatewayName, HostPattern, HostScope, HttpAction, HttpRule, LbAlgorithm, Protocol, Rewrite,
    RouteRules, Server, Service, ServicePort, SidecarScope, SlicePort, Subset, TargetPort,
    TrafficPolicy, Visibility, WeightedDestination, Workload,
};
use model::{Batch, Capabilities, Change, Engine, Kind, ObjectRef, Proxy, ProxyKey, Row, Update};

const SERVICES: u32 = 10_000;
const NAMESPACES: u32 = 200;
const PER_SERVICE: u32 = 10;
/// Hosts with rules: these behind the gateway, as many after them in the mesh.
const ROUTED: u32 = 1_000;
/// Namespaces that have a DestinationRule of their own for a host of another.
const PRIVATE: u32 = NAMESPACES / 5;
/// Namespaces that have Sidecars, and how many each.
const NARROWED: u32 = NAMESPACES / 10;
const SIDECARS: u32 = 16;
/// The service with a thousand endpoints in ten slices.
const LARGE: u32 = 0;
const ROUNDS: u32 = 200;

fn owner(kind: &'static str, namespace: &str, name: &str) -> Arc<ObjectRef> {
    Arc::new(ObjectRef {
        source: "bench".into(),
        kind: Kind { name: kind.into(), group: "".into() },
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn one(owner: Arc<ObjectRef>, row: Row) -> Change {
    Change { owner, rows: vec![row] }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
}

fn namespace(n: u32) -> String {
    format!("ns{}", n % NAMESPACES)
}

fn host(n: u32) -> Arc<str> {
    format!("s{n}.{}.svc.cluster.local", namespace(n)).into()
}

fn service(n: u32) -> Change {
    let row = Service {
        host: host(n),
        namespace: namespace(n).into(),
        name: format!("s{n}").into(),
        addresses: vec![address(n, 200)],
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            target: TargetPort::Number(8080),
        }],
        selector: labels(&[("app", &format!("s{n}"))]),
        export_to: None,
        ..Service::default()
    };
    one(owner("Service", &namespace(n), &format!("s{n}")), Row::Service(row.into()))
}

fn address(n: u32, endpoint: u32) -> IpAddr {
    let [_, b, c, d] = (n * 16 + endpoint % 16 + endpoint / 16 * 200_000).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, b, c, d))
}

fn slice(n: u32, part: u32, changed: bool) -> Change {
    let count = if n == LARGE { 100 } else { PER_SERVICE };
    let endpoint = |i: u32| Endpoint {
        addresses: vec![address(n, part * 100 + i)],
        ready: !(changed && i == 3),
        draining: false,
        workload: Some(format!("s{n}-{i}").into()),
        node: None,
        zone: Some(format!("zone-{}", i % 3).into()),
        declared: None,
    };
    let row = EndpointSlice {
        namespace: namespace(n).into(),
        service: format!("s{n}").into(),
        ports: vec![SlicePort { name: "http".into(), number: 8080 }],
        endpoints: (0..count).map(endpoint).collect(),
    };
    let name = format!("s{n}-{part}");
    one(owner("EndpointSlice", &namespace(n), &name), Row::EndpointSlice(row.into()))
}

fn pod(n: u32, i: u32, version: &str) -> Change {
    let row = Workload {
        namespace: namespace(n).into(),
        name: format!("s{n}-{i}").into(),
        labels: labels(&[("app", &format!("s{n}")), ("version", version)]),
        addresses: vec![address(n, i)],
        service_account: "default".into(),
        ready: true,
        ..Workload::default()
    };
    one(owner("Pod", &namespace(n), &format!("s{n}-{i}")), Row::Workload(row.into()))
}

fn rules(n: u32, weight: u32) -> Change {
    let destination = |subset: &str, weight| WeightedDestination {
        field: "spec.http[0].route[0]".into(),
        destination: Destination { host: host(n), subset: Some(subset.into()), port: None },
        weight,
    };
    let row = RouteRules {
        namespace: namespace(n).into(),
        created: None,
        hosts: vec![if n < ROUTED { format!("s{n}.example.com").into() } else { host(n) }],
        gateways: vec![if n < ROUTED {
            GatewayName::Gateway { namespace: "edge".into(), name: "edge".into() }
        } else {
            GatewayName::Mesh
        }],
        export_to: None,
        http: vec![HttpRule {
            field: "spec.http[0]".into(),
            name: None,
            matches: vec![],
            action: HttpAction::Forward(Forward {
                destinations: vec![destination("v1", weight), destination("v2", 1000)],
                rewrite: Rewrite::default(),
                timeout: None,
                retries: None,
            }),
        }],
        tls: vec![],
        tcp: vec![],
    };
    one(owner("VirtualService", &namespace(n), &format!("s{n}")), Row::RouteRules(row.into()))
}

fn policy(n: u32) -> Change {
    let subset = |version: &str| Subset {
        field: "spec.subsets[0]".into(),
        name: version.into(),
        labels: labels(&[("version", version)]),
        policy: TrafficPolicy::default(),
    };
    let row = DestinationPolicy {
        namespace: namespace(n).into(),
        created: None,
        host: host(n),
        export_to: None,
        field: "spec.trafficPolicy".into(),
        policy: TrafficPolicy::default(),
        subsets: vec![subset("v1"), subset("v2")],
    };
    let row = Row::DestinationPolicy(row.into());
    one(owner("DestinationRule", &namespace(n), &format!("s{n}")), row)
}

/// A policy that only its own namespace sees, for a host of another.
fn private(n: u32) -> Change {
    let row = DestinationPolicy {
        namespace: namespace(n).into(),
        created: None,
        host: host(5_000 + n + 1),
        export_to: Some(Visibility::Namespaces([namespace(n).into()].into())),
        field: "spec.trafficPolicy".into(),
        policy: TrafficPolicy {
            load_balancer: Some(LbAlgorithm::RoundRobin.into()),
            ..TrafficPolicy::default()
        },
        subsets: vec![],
    };
    one(owner("DestinationRule", &namespace(n), "private"), Row::DestinationPolicy(row.into()))
}

/// A namespace with Sidecars: the last ones.
fn narrowed(i: u32) -> u32 {
    NAMESPACES - 1 - i
}

fn sidecar(n: u32, i: u32) -> Change {
    let pattern = |scope, host| HostPattern { scope, host };
    let hosts = (0..5).map(|k| pattern(HostScope::Any, host(n + NAMESPACES * (i + k))));
    let row = SidecarScope {
        namespace: namespace(n).into(),
        created: None,
        selector: labels(&[("app", &format!("w{i}"))]),
        egress: Some(vec![EgressListener { hosts: hosts.collect(), ..EgressListener::default() }]),
        ..SidecarScope::default()
    };
    one(owner("Sidecar", &namespace(n), &format!("w{i}")), Row::SidecarScope(row.into()))
}

/// One proxy of each group.
fn proxies() -> anyhow::Result<Vec<(ProxyKey, Proxy)>> {
    let full = Capabilities { vhds: true, mutual_tls: false };
    let mut edge = Proxy::parse("router~10.0.0.1~edge-0.edge~edge", None, full)?;
    edge.labels = labels(&[("istio", "ingressgateway")]);
    let mut all = vec![edge];
    for n in 0..NAMESPACES {
        let count = if n > narrowed(NARROWED) { SIDECARS } else { 1 };
        for i in 0..count {
            let id = format!("sidecar~10.0.0.1~w{i}.{}~local", namespace(n));
            let mut proxy = Proxy::parse(&id, None, full)?;
            proxy.labels = labels(&[("app", &format!("w{i}"))]);
            all.push(proxy);
        }
    }
    Ok((0..).map(ProxyKey).zip(all).collect())
}

fn world() -> Vec<Change> {
    let gateway = Gateway {
        namespace: "edge".into(),
        name: "edge".into(),
        created: None,
        selector: labels(&[("istio", "ingressgateway")]),
        servers: vec![Server {
            field: "spec.servers[0]".into(),
            port: 80,
            bind: None,
            hosts: vec![HostPattern { scope: HostScope::Any, host: "*".into() }],
        }],
    };
    let mut all = vec![one(owner("Gateway", "edge", "edge"), Row::Gateway(gateway.into()))];
    for n in 0..SERVICES {
        all.push(service(n));
        let parts = if n == LARGE { 10 } else { 1 };
        all.extend((0..parts).map(|part| slice(n, part, false)));
        all.extend((0..PER_SERVICE).map(|i| pod(n, i, if i % 2 == 0 { "v1" } else { "v2" })));
        if n < 2 * ROUTED {
            all.push(rules(n, 0));
            all.push(policy(n));
        }
    }
    all.extend((0..PRIVATE).map(private));
    for i in 0..NARROWED {
        all.extend((0..SIDECARS).map(|k| sidecar(narrowed(i), k)));
    }
    all
}

/// Bytes of what an update says.
fn encode(update: &Update) -> usize {
    let resources = update.resources.iter().filter_map(|(_, r)| r.as_ref());
    resources.map(|r| translate::encode(r).0.body().len()).sum()
}

struct Measured {
    what: &'static str,
    bar: Option<Duration>,
    median: Duration,
    plain: Duration,
    resources: usize,
}

/// Apply edits one by one and take the median, beside the median of encoding alone.
fn edits(
    engine: &mut Engine,
    what: &'static str,
    bar: Duration,
    expected: usize,
    edit: impl Fn(u32) -> Change,
) -> anyhow::Result<Measured> {
    let (mut whole, mut plain) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let changes = vec![edit(round)];
        let started = Instant::now();
        let update = engine.apply(Batch { changes, ..Batch::default() });
        std::hint::black_box(encode(&update));
        whole.push(started.elapsed());
        anyhow::ensure!(
            update.resources.len() == expected,
            "{what}: {} resources differ, not {expected}",
            update.resources.len()
        );
        let started = Instant::now();
        std::hint::black_box(encode(&update));
        plain.push(started.elapsed());
    }
    whole.sort();
    plain.sort();
    let middle = whole.len() / 2;
    let (median, plain) = (whole[middle], plain[middle]);
    Ok(Measured { what, bar: Some(bar), median, plain, resources: expected })
}

fn main() -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench_engine: this is a debug build; use `make bench`");
    }
    let changes = world();
    let objects = changes.len();
    let connected = proxies()?;
    let groups = connected.len();
    let mut engine = Engine::new();
    let started = Instant::now();
    let update = engine.apply(Batch { changes, connected, disconnected: vec![] });
    let bytes = encode(&update);
    let cold = started.elapsed();
    let started = Instant::now();
    encode(&update);
    let plain = started.elapsed();
    let mut all = vec![Measured {
        what: "cold build, everything encoded",
        bar: Some(Duration::from_secs(3)),
        median: cold,
        plain,
        resources: update.resources.len(),
    }];
    drop(update);
    let micros = Duration::from_micros;
    // The third endpoint is of the whole service, which sidecars have, and of its subset v2.
    all.push(edits(&mut engine, "one endpoint changed", micros(100), 2, |round| {
        slice(7, 0, round % 2 == 0)
    })?);
    all.push(edits(&mut engine, "the same, of 1,000 endpoints", micros(150), 2, |round| {
        slice(LARGE, 0, round % 2 == 0)
    })?);
    all.push(edits(&mut engine, "one VirtualService edited", micros(1000), 1, |round| {
        rules(7, round + 1)
    })?);
    // For everybody, and for the host's own namespace, where it has a shorter name as well.
    all.push(edits(&mut engine, "the same, of the mesh", micros(1000), 2, |round| {
        rules(ROUTED + 7, round + 1)
    })?);
    // Cluster, endpoint set, and two virtual hosts.
    all.push(edits(&mut engine, "one Service added", micros(2000), 4, |round| {
        // In the first half of the namespaces: the last have nobody who shares what all get.
        service(SERVICES + round / 100 * NAMESPACES + round % 100)
    })?);
    all.push(edits(&mut engine, "a pod relabelled", micros(500), 2, |round| {
        pod(9, 0, if round % 2 == 0 { "v2" } else { "v1" })
    })?);
    all.push(edits(&mut engine, "an edit without effect", micros(50), 0, |_| rules(11, 0))?);
    println!("{objects} objects, {SERVICES} services, {groups} groups, {bytes} bytes encoded");
    println!("{:<32} {:>12} {:>12} {:>9}  {:>9}", "what", "measured", "bar", "encode", "resources");
    let mut missed = 0;
    for Measured { what, bar, median, plain, resources } in &all {
        let late = bar.is_some_and(|bar| *median > bar);
        missed += usize::from(late);
        let bar = bar.map(|b| format!("{b:?}")).unwrap_or_default();
        let mark = if late { "missed" } else { "" };
        println!("{what:<32} {median:>12?} {bar:>12} {plain:>9?}  {resources:>9}  {mark}");
    }
    println!("memory: {} MB resident", resident()? / 1_000_000);
    anyhow::ensure!(missed == 0, "{missed} bars were missed");
    Ok(())
}

/// Resident memory of this process in bytes.
fn resident() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096)
}
