//! The simulator of `house::traffic`, held against a real Envoy, and what calls come to by it.
//!
//! In: golden cases; `ENVOY_BIN` and root for the comparison, skipped aloud without. Out: calls
//! that end elsewhere than the simulator says.
//!
//! Envoy runs with the listeners and routes of a case; each cluster is replaced by a backend that
//! says its name. Calls are made of what the case has, and of what it has not, by a fixed seed.
//!
//! **Invariant:** the test runs in a network namespace of its own.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use house::client::tls_hello;
use house::golden::Case;
use house::mesh::{Envoy, free_address};
use house::namespace;
use house::static_file::static_file;
use house::traffic::{Call, Config, End, Request, Says};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const SEED: u64 = 5;
/// Calls for each case.
const CALLS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);
/// The workload beside the proxy.
const WORKLOAD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

fn reached(case: &str, to: &str, says: Says) -> (End, String) {
    let outcome = Case::named(case).expect("a case").run().expect("the case can be worked through");
    let to: SocketAddr = to.parse().expect("an address");
    let call = Call { to, from: WORKLOAD.into(), inbound: to.ip() == WORKLOAD, says };
    let reached = Config::of(&outcome).reach(&call);
    (reached.end, reached.by)
}

fn get(host: &str, path: &str, headers: &[(&str, &str)]) -> Says {
    Says::Http(Request {
        method: "GET".to_owned(),
        host: host.to_owned(),
        path: path.to_owned(),
        headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    })
}

fn at(cluster: &str) -> End {
    End::Clusters(vec![cluster.to_owned()])
}

#[test]
fn given_calls_of_a_workload_then_each_ends_where_its_author_meant() {
    let tls = |name: &str| Says::Tls(Some(name.to_owned()));
    for (case, to, says, end) in [
        (
            "sidecar/plain",
            "10.96.0.1:80",
            get("reviews", "/", &[]),
            at("outbound|80||reviews.default.svc.cluster.local"),
        ),
        (
            "service-entry/tls-by-name",
            "192.0.2.1:443",
            tls("a.example.com"),
            at("outbound|443||a.example.com"),
        ),
        (
            "service-entry/tls-by-name",
            "192.0.2.1:443",
            tls("c.example.com"),
            at("PassthroughCluster"),
        ),
        (
            "service-entry/wildcard",
            "192.0.2.1:443",
            tls("x.y.example.com"),
            at("outbound|443||*.example.com"),
        ),
        (
            "service-entry/wildcard",
            "192.0.2.1:80",
            get("x.example.com:80", "/", &[]),
            at("outbound|80||*.example.com"),
        ),
        (
            "service-entry/tcp-by-block",
            "192.0.2.77:3306",
            Says::Bytes,
            at("outbound|3306||db.example.com"),
        ),
        ("service-entry/tcp-by-block", "198.51.100.1:3306", Says::Bytes, at("PassthroughCluster")),
        (
            "service-entry/static-subsets",
            "192.0.2.1:80",
            get("api.example.com", "/new/x", &[]),
            at("outbound|80|v2|api.example.com"),
        ),
        (
            "connections/tls-rules",
            "10.96.0.4:443",
            tls("x.new.example.com"),
            at("outbound|443||canary.default.svc.cluster.local"),
        ),
        (
            "connections/tls-rules",
            "10.96.0.4:443",
            tls("other.example.com"),
            at("outbound|443||secure.default.svc.cluster.local"),
        ),
        (
            "connections/tls-rules-below-a-wildcard",
            "192.0.2.1:443",
            tls("a.example.com"),
            at("outbound|443||b.test"),
        ),
        (
            "connections/names-claimed-twice",
            "192.0.2.1:443",
            tls("a.example.com"),
            at("outbound|443||a.example.com"),
        ),
        (
            "connections/names-claimed-twice",
            "192.0.2.1:443",
            tls("c.example.com"),
            at("outbound|443||b.example.com"),
        ),
        (
            "connections/destination-subnets",
            "192.0.2.200:3306",
            Says::Bytes,
            at("outbound|3306||one.default.svc.cluster.local"),
        ),
        (
            "connections/destination-subnets",
            "192.0.2.100:3306",
            Says::Bytes,
            at("outbound|3306||far.example.com"),
        ),
        (
            "connections/source-subnet",
            "10.96.0.1:3306",
            Says::Bytes,
            at("outbound|3306||one.default.svc.cluster.local"),
        ),
        (
            "connections/headless",
            "10.1.0.2:3306",
            Says::Bytes,
            at("outbound|3306||db.default.svc.cluster.local"),
        ),
        (
            "connections/unknown-protocol",
            "10.96.0.3:9000",
            Says::Bytes,
            at("outbound|9000||any.default.svc.cluster.local"),
        ),
        ("connections/unknown-protocol", "10.96.0.3:9001", Says::Bytes, End::Closed),
        (
            "connections/unknown-protocol",
            "10.96.0.9:9000",
            get("nobody.test", "/", &[]),
            End::Status(502),
        ),
        (
            "sidecar/headless-http",
            "10.1.0.1:80",
            get("web-0.web", "/", &[]),
            at("outbound|80||web.default.svc.cluster.local"),
        ),
        (
            "sidecar/external-name",
            "192.0.2.1:80",
            get("alias", "/", &[]),
            at("outbound|80||web.default.svc.cluster.local"),
        ),
        (
            "sidecar/external-name",
            "192.0.2.1:80",
            get("out", "/", &[]),
            at("outbound|80||out.default.svc.cluster.local"),
        ),
        ("sidecar/egress-by-port", "10.96.0.2:8080", get("b", "/", &[]), at("PassthroughCluster")),
        (
            "sidecar/egress-by-port",
            "10.96.0.2:9090",
            get("b", "/", &[]),
            at("outbound|9090||b.default.svc.cluster.local"),
        ),
        (
            "sidecar/not-captured",
            "127.0.0.1:8080",
            get("web", "/", &[]),
            at("outbound|8080||web.default.svc.cluster.local"),
        ),
        ("inbound/ports", "10.0.0.7:8080", get("web", "/", &[]), at("inbound|8080||")),
        ("inbound/ports", "10.0.0.7:3306", Says::Bytes, at("inbound|3306||")),
        ("inbound/ports", "10.0.0.7:7000", Says::Bytes, at("inbound|7000||")),
        ("inbound/ports", "10.0.0.7:4444", Says::Bytes, at("InboundPassthroughCluster")),
        ("inbound/ports", "10.0.0.7:15006", Says::Bytes, End::Closed),
    ] {
        let said = format!("{says:?}");
        let (found, by) = reached(case, to, says);
        assert_eq!(found, end, "{case}: {said} at {to}, by {by}");
    }
}

#[test]
fn given_random_calls_then_they_end_where_the_simulator_says() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    if !namespace::is_within(|| Ok("calls".to_owned())) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let counts = runtime.block_on(compare(&envoy)).expect("Envoy and the simulator agree");
    eprintln!("calls compared: {counts:?}");
    assert!(counts.values().sum::<usize>() >= 200, "too few calls: {counts:?}");
    for kind in ["http", "tls", "bytes", "inbound"] {
        assert!(counts.get(kind).is_some_and(|n| *n >= 10), "too few of {kind}: {counts:?}");
    }
}

/// Compare, and say how many calls of each kind there were.
async fn compare(envoy: &Path) -> Result<BTreeMap<&'static str, usize>> {
    namespace::run("ip link set lo up")?;
    namespace::run("ip address add 10.0.0.7/32 dev lo")?;
    namespace::run("ip route add default dev lo")?;
    let nat = "iptables -t nat -A OUTPUT -p tcp";
    namespace::run(&format!("{nat} -d 10.0.0.7 -j REDIRECT --to-ports 15006"))?;
    namespace::run(&format!("{nat} ! -d 127.0.0.0/8 -j REDIRECT --to-ports 15001"))?;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for (index, case) in Case::all()?.into_iter().enumerate() {
        // These need an agent that serves certificates: `tests/mutual_tls.rs`.
        if case.name.starts_with("mtls/") {
            continue;
        }
        let area = case.name.split('/').next().unwrap_or_default();
        let whole = ["sidecar", "service-entry", "connections", "inbound"];
        if !whole.contains(&area) && index % 10 != 0 {
            continue;
        }
        let case_wrong = compare_case(envoy, &case, &mut random, &mut counts);
        wrong.extend(case_wrong.await.with_context(|| case.name.clone())?);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(counts)
}

async fn compare_case(
    envoy: &Path,
    case: &Case,
    random: &mut StdRng,
    counts: &mut BTreeMap<&'static str, usize>,
) -> Result<Vec<String>> {
    let outcome = case.run()?;
    let config = Config::of(&outcome);
    if config.listeners.is_empty() {
        return Ok(Vec::new());
    }
    // Ends with this function, and the backends with it.
    let mut backends = JoinSet::new();
    let mut ports = BTreeMap::new();
    for name in config.clusters.keys() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        ports.insert(name.clone(), listener.local_addr()?.port());
        backends.spawn(backend(listener, name.clone()));
    }
    let cluster = |name: &str, body: Value| match ports.get(name) {
        Some(port) if !config.is_empty(name) => json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
                "endpoint": {"address": {"socket_address": {
                    "address": "127.0.0.1", "port_value": port,
                }}},
            }]}]},
        }),
        _ => body,
    };
    let admin = free_address()?;
    let file = static_file(&outcome, Some((admin.ip().to_string(), admin.port())), cluster)?;
    let work = tempfile::tempdir()?;
    let path = work.path().join("envoy.json");
    std::fs::write(&path, file.to_string())?;
    let mut envoy = Envoy::from_file(envoy, &path, admin, work.path()).await?;
    let mut wrong = Vec::new();
    for call in calls(&config, random) {
        let expected = config.reach(&call);
        let kind = match (&call.says, call.inbound) {
            (_, true) => "inbound",
            (Says::Http(_), _) => "http",
            (Says::Tls(_), _) => "tls",
            (Says::Bytes, _) => "bytes",
        };
        *counts.entry(kind).or_default() += 1;
        let found = make(&call).await.with_context(|| format!("{call:?}"))?;
        let same = match (&expected.end, &found) {
            (End::Clusters(some), End::Clusters(one)) => one.iter().all(|name| some.contains(name)),
            (expected, found) => expected == found,
        };
        if !same {
            let name = &case.name;
            wrong.push(format!("{name}: {call:?} ended at {found:?}, not {expected:?}"));
        }
    }
    envoy.check()?;
    Ok(wrong)
}

/// Calls of what a configuration has, and of what it has not.
fn calls(config: &Config, random: &mut StdRng) -> Vec<Call> {
    let mut places: Vec<(SocketAddr, bool)> = Vec::new();
    let mut names: BTreeSet<String> = BTreeSet::from(["nobody.test".to_owned()]);
    let stranger: IpAddr = [203, 0, 113, 9].into();
    for (name, listener) in &config.listeners {
        let socket = &listener["address"]["socket_address"];
        let port = socket["port_value"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(0);
        let chains = listener["filter_chains"].as_array().cloned().unwrap_or_default();
        for matcher in chains.iter().map(|chain| &chain["filter_chain_match"]) {
            let server_names = matcher["server_names"].as_array().into_iter().flatten();
            names.extend(server_names.filter_map(Value::as_str).map(|n| n.replace('*', "x")));
            for block in matcher["prefix_ranges"].as_array().into_iter().flatten() {
                if let Some(Ok(IpAddr::V4(v4))) = block["address_prefix"].as_str().map(str::parse) {
                    places.push((SocketAddr::from((v4, port)), false));
                }
            }
            let inbound = matcher["destination_port"].as_u64();
            if let Some(port) = inbound.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 15006)
                && name == "virtualInbound"
            {
                places.push((SocketAddr::from((WORKLOAD, port)), true));
            }
        }
        match socket["address"].as_str().unwrap_or_default().parse::<IpAddr>() {
            _ if name == "virtualInbound" => {
                places.push((SocketAddr::from((WORKLOAD, 4444)), true))
            }
            _ if name.starts_with("inbound|") => {}
            _ if name == "virtualOutbound" => {
                places.push((SocketAddr::from((stranger, 4444)), false))
            }
            Ok(IpAddr::V4(any)) if any.is_unspecified() => {
                let address = if config.captures() { stranger } else { Ipv4Addr::LOCALHOST.into() };
                places.push((SocketAddr::from((address, port)), false));
            }
            Ok(address @ IpAddr::V4(_)) => places.push((SocketAddr::from((address, port)), false)),
            _ => {}
        }
    }
    let mut paths = vec!["/".to_owned(), "/somewhere/else?a=b".to_owned()];
    let mut headers: Vec<(String, String)> = Vec::new();
    for host in config.hosts.values().flatten() {
        let domains = host["domains"].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.extend(domains.filter(|d| !d.starts_with('[')).map(|d| d.replace('*', "x")));
        for route in host["routes"].as_array().into_iter().flatten() {
            let condition = &route["match"];
            for key in ["prefix", "path"] {
                let Some(path) = condition[key].as_str().filter(|p| p.starts_with('/')) else {
                    continue;
                };
                paths.extend([path.to_owned(), format!("{path}x"), path.to_uppercase()]);
            }
            for header in condition["headers"].as_array().into_iter().flatten() {
                let name = header["name"].as_str().unwrap_or_default().to_owned();
                let value = &header["string_match"];
                let value = value["exact"].as_str().or(value["prefix"].as_str()).unwrap_or("x");
                if !name.starts_with(':') {
                    headers.push((name, value.to_owned()));
                }
            }
            for parameter in condition["query_parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap_or_default();
                let value = &parameter["string_match"];
                let value = value["exact"].as_str().or(value["prefix"].as_str()).unwrap_or("x");
                paths.push(format!("/?{name}={value}"));
            }
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    let mut out = Vec::new();
    for _ in 0..CALLS {
        let Some(&(to, inbound)) = places.choose(random) else { return out };
        let name = names.choose(random).cloned().unwrap_or_default();
        let says = match random.random_range(0..10) {
            0..6 => Says::Http(Request {
                method: if random.random_bool(0.8) { "GET" } else { "POST" }.to_owned(),
                host: if random.random_bool(0.2) { format!("{name}:{}", to.port()) } else { name },
                path: paths.choose(random).cloned().unwrap_or_default(),
                headers: headers.iter().filter(|_| random.random_bool(0.5)).cloned().collect(),
            }),
            6..8 => Says::Tls(Some(name).filter(|_| random.random_bool(0.9))),
            _ => Says::Bytes,
        };
        // A client reaches its own machine by a loopback address, any other by its own.
        let from = if to.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { WORKLOAD };
        out.push(Call { to, from: from.into(), inbound, says });
    }
    out
}

/// Make a call, and see who answers.
async fn make(call: &Call) -> Result<End> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(call.to)).await??;
    let hello = match &call.says {
        // No letter that a method could begin with.
        Says::Bytes => b"\x02hello\r\n".to_vec(),
        Says::Tls(name) => tls_hello(name.as_deref()),
        Says::Http(request) => {
            let Request { method, host, path, headers } = request;
            let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("content-length: 0\r\nconnection: close\r\n\r\n");
            text.into_bytes()
        }
    };
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(&hello).await?;
        // Envoy gives a client a second to close: nobody needs to wait for it.
        while !is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A connection that is refused is reset.
    let _ = timeout(PATIENCE, talk).await.context("no answer")?;
    let text = String::from_utf8_lossy(&answer);
    if let Some((_, name)) = text.split_once("I am ") {
        return Ok(End::Clusters(vec![name.trim().to_owned()]));
    }
    match text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
        Some(status) => Ok(End::Status(status.parse()?)),
        None => Ok(End::Closed),
    }
}

/// Whether this is an HTTP/1.1 answer with all of its body.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.and_then(|n| n.trim().parse().ok()).is_some_and(|n: usize| body.len() >= n)
}

/// Says its name to whoever says anything.
async fn backend(listener: TcpListener, name: String) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let name = name.clone();
        connections.spawn(async move {
            let mut said = vec![0; 4096];
            let count = stream.read(&mut said).await.unwrap_or(0);
            let body = format!("I am {name}");
            let http = said[..count].first().is_some_and(u8::is_ascii_uppercase);
            let answer = match http {
                true => format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                ),
                false => body,
            };
            // A client that hangs up is no fault of the backend.
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
