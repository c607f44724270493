//! Two real sidecars whose pods' connections are captured, both ways.
//!
//! In: `ENVOY_BIN`, root, `unshare`, `nsenter`, `ip`, `nft`, `iptables`, `setpriv`; skipped aloud without
//! one of them. Out: what comes back to a client that connects to addresses of services.
//!
//! The test starts itself again in a network namespace of its own: the pod of the client, and the
//! controller in it. Two further namespaces are the pod of a server, with a sidecar of its own, and
//! the rest of the world, without. What the proxies themselves send is known by its user. The rules
//! are those of `heddle-agent init`.
//!
//! **Invariant:** nothing outside of those namespaces is touched, and they end with the process.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use envoy_api::bootstrap::{Bootstrap, Protocol};
use house::backend::NAME_HEADER;
use house::client::Client;
use house::mesh::{Controller, Envoy, replace};
use house::namespace::{self, Neighbour, PROXY_USER, run};
use house::process::{Leashed, built, sibling};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CLIENT: &str = "sidecar~10.1.0.9~client-0.default~default.svc.cluster.local";
const SERVER: &str = "sidecar~10.1.0.1~db-0.default~default.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(10);

/// Of the client's pod, the server's pod, and pods without a sidecar of two namespaces.
const CLIENT_POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
const SERVER_POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OTHER_POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SHOP_POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
/// Machines outside of the mesh, and an address that nobody has.
const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 10), Ipv4Addr::new(203, 0, 113, 11)];
const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
/// Addresses of the proxies' own business, which is not captured.
const CONTROL: &str = "10.9.0.0/16";
const CONTROLLER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER_ADMIN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Addresses of services: nobody has them.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ECHO: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 3);
const SHOP_ECHO: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 4);
const UNNAMED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 5);
const GREETER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 6);

/// The same pods, and services, by IPv6.
const CLIENT_POD_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9);
const SERVER_POD_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
const OTHER_POD_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const WEB_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
const ECHO_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 2);

const MESH: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: client-0, namespace: default, labels: { app: client } }
status: { podIP: 10.1.0.9 }
---
apiVersion: v1
kind: Pod
metadata: { name: db-0, namespace: default, labels: { app: server, version: v1 } }
status: { podIP: 10.1.0.1 }
---
apiVersion: v1
kind: Pod
metadata: { name: db-1, namespace: default, labels: { app: server, version: v2 } }
status: { podIP: 10.1.0.2 }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web, namespace: default }
spec: { host: web, subsets: [{ name: v1, labels: { version: v1 } }, { name: v2, labels: { version: v2 } }] }
---
"#;

/// A server outside of the mesh, for clients that speak TLS themselves.
fn outside(name: &str, address: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{ name: {name}, namespace: default }}\nspec:\n  hosts: [{name}.example.com]\n  \
         ports: [{{ number: 443, name: tls, protocol: TLS, targetPort: 9443 }}]\n  \
         resolution: STATIC\n  endpoints: [{{ address: {address} }}]\n---\n"
    )
}

/// A service and its endpoints. `port`: name, number, number on its pods.
fn service(
    id: &str,
    ip: &str,
    port: (&str, u16, u16),
    pods: &[(&str, impl Into<IpAddr> + Copy)],
) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    let (label, number, target) = port;
    let ipv6 = pods.iter().any(|(_, address)| (*address).into().is_ipv6());
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let mut out = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec: {{ clusterIP: \"{ip}\", selector: {{ app: server }}, \
         ports: [{{ name: \"{label}\", port: {number}, targetPort: {target} }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {name}-1, namespace: {namespace}, labels: {{ kubernetes.io/service-name: {name} }} }}\n\
         addressType: {family}\nports: [{{ name: \"{label}\", port: {target} }}]\nendpoints:\n"
    );
    for (pod, address) in pods {
        let reference = format!("targetRef: {{ kind: Pod, name: {pod} }}");
        let address: IpAddr = (*address).into();
        out.push_str(&format!(
            "- {{ addresses: [\"{address}\"], hostname: {pod}, {reference} }}\n"
        ));
    }
    out + "---\n"
}

fn services() -> String {
    let server = ("db-0", SERVER_POD);
    let other = ("db-1", OTHER_POD);
    let shop = ("shop-0", SHOP_POD);
    MESH.to_owned()
        + &outside("a", "203.0.113.10")
        + &outside("b", "203.0.113.11")
        + &service("default/web", "10.96.0.1", ("http", 80, 8080), &[server, other])
        + &service("default/echo", "10.96.0.2", ("tcp", 80, 9000), &[server])
        + &service("default/first", "10.96.0.3", ("tcp", 80, 9001), &[server])
        + &service("default/greeter", "10.96.0.6", ("grpc", 50051, 8081), &[server])
        + &service("default/db", "None", ("http", 8082, 8082), &[server, other])
        + &service("default/raw", "None", ("tcp", 9002, 9002), &[server, other])
        + &service("shop/echo", "10.96.0.4", ("tcp", 80, 9000), &[shop])
        + &service("default/web6", "fd00:96::1", ("http", 80, 8080), &[("db-0", SERVER_POD_6)])
        + &service("default/echo6", "fd00:96::2", ("tcp", 80, 9000), &[("db-0", SERVER_POD_6)])
        + &service("shop/unnamed", "10.96.0.5", ("", 8000, 8080), &[shop])
}

/// Who gets what is not for `/v2`.
fn rules(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: web, namespace: default }}\n\
         spec:\n  hosts: [web]\n  http:\n\
         \x20 - match: [{{ uri: {{ prefix: /v2 }} }}]\n    route: [{{ destination: {{ host: web, subset: v2 }} }}]\n\
         \x20 - match: [{{ sourceLabels: {{ app: client }}, uri: {{ prefix: /mine }} }}]\n    directResponse: {{ status: 418 }}\n\
         \x20 - route: [{{ destination: {{ host: web, subset: {subset} }} }}]\n"
    )
}

const DECLARED_ONLY: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: client, namespace: default }
spec:
  workloadSelector: { labels: { app: client } }
  outboundTrafficPolicy: { mode: REGISTRY_ONLY }
";

/// A mesh of a client and a server, and what of it is running.
struct Mesh {
    controller: Controller,
    client: Envoy,
    server: Envoy,
    files: PathBuf,
    _servers: Vec<Leashed>,
    _neighbours: [Neighbour; 2],
}

#[test]
fn given_two_sidecars_when_nft_captures_connections_then_each_reaches_what_it_was_meant_for() {
    run_by("nft");
}

#[test]
fn given_two_sidecars_when_iptables_captures_connections_then_each_reaches_what_it_was_meant_for() {
    run_by("iptables");
}

fn run_by(tool: &str) {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let binaries = || {
        let controller = built(env!("CARGO"), "heddle-controller")?;
        let agent = built(env!("CARGO"), "heddle-agent")?;
        Ok(format!("{}\n{}", controller.display(), agent.display()))
    };
    if namespace::is_within(binaries) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let carried = namespace::carried();
        let (controller, agent) = carried.split_once('\n').expect("two binaries");
        let binaries = [&envoy, Path::new(controller), Path::new(agent)];
        runtime.block_on(captured(binaries, tool)).expect("both are served");
    }
}

async fn captured(binaries: [&Path; 3], tool: &str) -> Result<()> {
    let work = tempfile::tempdir()?;
    let mut mesh = Mesh::start(binaries, tool, work.path()).await?;
    let mut wrong = Vec::new();
    let mut check = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            wrong.push(format!("{what}: {error:#}"));
        }
    };
    check("HTTP", http().await);
    check("HTTP/2", http2().await);
    check("bytes", connections().await);
    check("a pod by name", pods_by_name(&mesh.client).await);
    check("TLS", tls().await);
    check("undeclared", undeclared(true).await);
    check("inbound", mesh.inbound().await);
    check("IPv6", mesh.ipv6().await);
    check("an edit", mesh.edited().await);
    check("REGISTRY_ONLY", mesh.declared_only().await);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    mesh.stop().await
}

/// By rules, by every name of the service.
async fn http() -> Result<()> {
    let mut web = Client::new((WEB, 80).into());
    for host in ["web", "web.default", "web.default.svc.cluster.local", "10.96.0.1"] {
        served(&mut web, host, "/", "server").await?;
        served(&mut web, host, "/v2/x", "other").await?;
    }
    let answer = web.get("web", "/mine").await?;
    ensure!(answer.status == 418, "a rule for this workload: {answer:?}");
    // A port of which nothing is said.
    let mut unnamed = Client::new((UNNAMED, 8000).into());
    served(&mut unnamed, "unnamed.shop", "/", "other").await
}

/// As gRPC does it: HTTP/2 from the first byte, all the way.
async fn http2() -> Result<()> {
    let stream = TokioIo::new(connect(GREETER, 50051).await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    let request = http::Request::post("http://greeter:50051/hello.Greeter/Hello")
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())?;
    let answer = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = answer.status();
    let by = answer.headers().get(NAME_HEADER).cloned();
    let body = answer.into_body().collect().await?.to_bytes();
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    ensure!(
        by.is_some_and(|name| name == "server") && said["version"] == "HTTP/2.0",
        "{status} {said}"
    );
    Ok(())
}

/// TCP on the port of HTTP, in two namespaces; and a protocol in which the server speaks first.
async fn connections() -> Result<()> {
    echoed(ECHO, 80, b"\x02hello", "server").await?;
    echoed(SHOP_ECHO, 80, b"\x02hello", "other").await?;
    let began = Instant::now();
    let mut stream = connect(FIRST, 80).await?;
    heard(&mut stream, b"server ").await?;
    ensure!(began.elapsed() < Duration::from_secs(2), "greeted after {:?}", began.elapsed());
    // A headless service by the addresses of its pods.
    echoed(SERVER_POD, 9002, b"\x02hello", "server").await?;
    echoed(OTHER_POD, 9002, b"\x02hello", "other").await
}

/// A name of a pod of a StatefulSet means that pod, the name of the service any of them.
async fn pods_by_name(client: &Envoy) -> Result<()> {
    for (address, pod, by) in [(SERVER_POD, "db-0", "server"), (OTHER_POD, "db-1", "other")] {
        for host in [format!("{pod}.db:8082"), format!("{pod}.db.default.svc.cluster.local:8082")] {
            for _ in 0..8 {
                served(&mut Client::new((address, 8082).into()), &host, "/", by).await?;
            }
        }
    }
    // As endpoints of the service, with its policies; not as addresses that the client happens to use.
    for cluster in ["outbound|8082||db.default.svc.cluster.local", "PassthroughCluster"] {
        let (count, own) =
            (connections_to(client, cluster).await?, cluster != "PassthroughCluster");
        ensure!((count > 0) == own, "{count} connections to {cluster}");
    }
    let answer = Client::new((SERVER_POD, 8082).into()).get("db:8082", "/").await?;
    ensure!(answer.status == 200, "the service by its name: {answer:?}");
    Ok(())
}

/// The name in the first message decides, and the bytes are left as they are.
async fn tls() -> Result<()> {
    for (name, by) in [("a.example.com", "outside-0"), ("b.example.com", "outside-1")] {
        let hello = house::client::tls_hello(Some(name));
        echoed(NOBODY, 443, &hello, by).await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// An address of which nobody has said anything.
async fn undeclared(allowed: bool) -> Result<()> {
    let [address, _] = OUTSIDE;
    let bytes = echoed(address, 7777, b"\x02hello", "outside-0").await;
    ensure!(bytes.is_ok() == allowed, "bytes: {bytes:?}");
    let answer = Client::new((address, 80).into()).get("nobody.test", "/").await?;
    let expected = if allowed { 200 } else { 502 };
    ensure!(answer.status == expected, "HTTP: {answer:?}");
    Ok(())
}

/// Connections that a proxy has opened to a cluster.
async fn connections_to(proxy: &Envoy, cluster: &str) -> Result<u64> {
    let name = format!("cluster.{cluster}.upstream_cx_total");
    let stats = proxy.page("/stats?format=json&filter=upstream_cx_total").await?;
    let stat = stats["stats"].as_array().into_iter().flatten().find(|s| s["name"] == name);
    stat.and_then(|s| s["value"].as_u64()).with_context(|| format!("no {name}"))
}

async fn served(client: &mut Client, host: &str, path: &str, by: &str) -> Result<()> {
    let answer = client.get(host, path).await?;
    ensure!(
        answer.status == 200 && answer.backend.as_deref() == Some(by),
        "{host}{path}: {} by {:?}, not by {by}",
        answer.status,
        answer.backend
    );
    Ok(())
}

/// Say something, and hear it again from this one.
async fn echoed(address: impl Into<IpAddr>, port: u16, said: &[u8], by: &str) -> Result<()> {
    let address = address.into();
    let mut stream = connect(address, port).await?;
    stream.write_all(said).await?;
    let expected = [format!("{by} ").as_bytes(), said].concat();
    heard(&mut stream, &expected).await.with_context(|| format!("{address}:{port}"))
}

async fn connect(address: impl Into<IpAddr>, port: u16) -> Result<TcpStream> {
    Ok(timeout(PATIENCE, TcpStream::connect((address.into(), port))).await??)
}

async fn heard(stream: &mut TcpStream, expected: &[u8]) -> Result<()> {
    let mut bytes = vec![0; expected.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut bytes)).await.context("nothing came")?;
    read.context("nothing came")?;
    let (bytes, expected) = (String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
    ensure!(bytes == expected, "heard {bytes:?}, not {expected:?}");
    Ok(())
}

// === impl Mesh ===

impl Mesh {
    async fn start(
        [envoy, controller, agent]: [&Path; 3],
        tool: &str,
        work: &Path,
    ) -> Result<Self> {
        run("ip link set lo up")?;
        run(&format!("ip address add {CONTROLLER}/32 dev lo"))?;
        run(&format!("ip address add {CLIENT_POD}/32 dev lo"))?;
        run(&format!("ip -6 address add {CLIENT_POD_6}/128 dev lo"))?;
        let addresses = [SERVER_POD.into(), SERVER_ADMIN.into(), SERVER_POD_6.into()];
        let server = Neighbour::start("server", &addresses, work)?;
        let [one, two] = OUTSIDE;
        let addresses = [OTHER_POD, SHOP_POD, one, two].map(IpAddr::from);
        let other =
            Neighbour::start("other", &[&addresses[..], &[OTHER_POD_6.into()]].concat(), work)?;
        run("ip route add default dev server && ip -6 route add default dev server")?;
        // Applied twice it is as applied once.
        let init = format!(
            "{} init --check --exclude-outbound-ip-ranges={CONTROL} --proxy-uid={PROXY_USER} \
             --proxy-gid={PROXY_USER} --tool={tool}",
            agent.display()
        );
        for _ in 0..2 {
            run(&init)?;
            server.run(&init)?;
        }

        let at = |address: Ipv4Addr, port| SocketAddr::from((address, port));
        let at_6 = |address: Ipv6Addr, port| SocketAddr::from((address, port));
        let backend = sibling("backend")?;
        let by_server = server.within(&backend, work)?;
        let by_other = other.within(&backend, work)?;
        let mut servers = Vec::new();
        for (program, address, name, speaks) in [
            (&by_server, at(SERVER_POD, 8080), "server", "http"),
            (&by_server, at(SERVER_POD, 8081), "server", "http"),
            (&by_server, at(SERVER_POD, 8082), "server", "http"),
            (&by_server, at(SERVER_POD, 9000), "server", "echo"),
            (&by_server, at(SERVER_POD, 9001), "server", "first"),
            (&by_server, at(SERVER_POD, 9002), "server", "echo"),
            (&by_server, at(SERVER_POD, 7000), "server", "echo"),
            (&by_server, at_6(SERVER_POD_6, 8080), "server", "http"),
            (&by_server, at_6(SERVER_POD_6, 9000), "server", "echo"),
            (&by_other, at_6(OTHER_POD_6, 7777), "other", "echo"),
            (&by_other, at(OTHER_POD, 8080), "other", "http"),
            (&by_other, at(OTHER_POD, 8082), "other", "http"),
            (&by_other, at(OTHER_POD, 9002), "other", "echo"),
            (&by_other, at(SHOP_POD, 9000), "other", "echo"),
            (&by_other, at(SHOP_POD, 8080), "other", "http"),
            (&by_other, at(one, 9443), "outside-0", "echo"),
            (&by_other, at(two, 9443), "outside-1", "echo"),
            (&by_other, at(one, 7777), "outside-0", "echo"),
            (&by_other, at(one, 80), "outside-0", "http"),
        ] {
            let args = [address.to_string(), name.to_owned(), speaks.to_owned()];
            let log = work.join(format!("{address}.log"));
            servers.push(Leashed::start(name, program, &args, &log)?);
        }
        let files = work.join("mesh");
        std::fs::create_dir(&files)?;
        replace(&files.join("services.yaml"), &services())?;
        replace(&files.join("rules.yaml"), &rules("v1"))?;
        let log = work.join("controller.log");
        let everywhere = at(Ipv4Addr::UNSPECIFIED, 15010);
        let mut controller = Controller::launch_at(controller, &files, &log, everywhere, &[])?;
        controller.ready().await?;
        let proxy = namespace::as_proxy(envoy, work)?;
        let of_server = server.within(&proxy, work)?;
        // What a proxy sends to an address of its own pod is taken for a call to its workload.
        let (here, there) = (at(Ipv4Addr::LOCALHOST, 15010), at(CONTROLLER, 15010));
        let client = sidecar(&proxy, CLIENT, at(CONTROLLER, 15000), here, work).await?;
        let admin = at(SERVER_ADMIN, 15000);
        let server_proxy = sidecar(&of_server, SERVER, admin, there, work).await?;
        let mut mesh = Self {
            controller,
            client,
            server: server_proxy,
            files,
            _servers: servers,
            _neighbours: [server, other],
        };
        mesh.well().await?;
        Ok(mesh)
    }

    /// Both proxies have taken everything.
    async fn well(&mut self) -> Result<()> {
        for (node, proxy) in [(CLIENT, &mut self.client), (SERVER, &mut self.server)] {
            let state = self.controller.synced(node, 0).await?;
            ensure!(state.rejected == 0, "{node} rejected: {:?}", state.errors);
            let warming = proxy.warming().await?;
            ensure!(warming.is_empty(), "{node} warming: {warming:?}");
            proxy.check()?;
        }
        Ok(())
    }

    async fn edit(&mut self, file: &str, text: &str) -> Result<()> {
        let before = self.controller.revision(&mut Client::new(self.controller.admin)).await?;
        replace(&self.files.join(file), text)?;
        self.controller.settled(CLIENT, before).await?;
        self.well().await?;
        // Envoy's workers swap after the ACK.
        tokio::time::sleep(Duration::from_millis(250)).await;
        Ok(())
    }

    /// What came in to the server came through its sidecar.
    async fn inbound(&mut self) -> Result<()> {
        // A port of the workload by its own address, and one that no service names.
        served(&mut Client::new((SERVER_POD, 8080).into()), "any", "/", "server").await?;
        echoed(SERVER_POD, 7000, b"\x02hello", "server").await?;
        for cluster in [
            "inbound|8080||",
            "inbound|8081||",
            "inbound|8082||",
            "inbound|9000||",
            "inbound|9001||",
            "inbound|9002||",
            "InboundPassthroughCluster",
        ] {
            let count = connections_to(&self.server, cluster).await?;
            ensure!(count > 0, "no connection to {cluster}");
        }
        Ok(())
    }

    /// The other family, from the client to the server through both proxies.
    async fn ipv6(&self) -> Result<()> {
        let inbound = ["inbound|8080||", "inbound|9000||"];
        let mut before = Vec::new();
        for cluster in inbound {
            before.push(connections_to(&self.server, cluster).await?);
        }
        served(&mut Client::new((WEB_6, 80).into()), "web6", "/", "server").await?;
        echoed(ECHO_6, 80, b"\x02hello", "server").await?;
        // A pod by its own address, and somebody outside.
        served(&mut Client::new((SERVER_POD_6, 8080).into()), "any", "/", "server").await?;
        echoed(OTHER_POD_6, 7777, b"\x02hello", "other").await?;
        for (cluster, before) in inbound.into_iter().zip(before) {
            let now = connections_to(&self.server, cluster).await?;
            ensure!(now > before, "{cluster}: {before} and then {now} connections");
        }
        Ok(())
    }

    /// An edit moves requests and keeps connections.
    async fn edited(&mut self) -> Result<()> {
        let mut first = connect(FIRST, 80).await?;
        heard(&mut first, b"server ").await?;
        let mut web = Client::new((WEB, 80).into());
        served(&mut web, "web", "/", "server").await?;
        self.edit("rules.yaml", &rules("v2")).await?;
        served(&mut web, "web", "/", "other").await?;
        // As much for a service that comes.
        let more = service("default/more", "10.96.0.7", ("tcp", 80, 9000), &[("db-0", SERVER_POD)]);
        self.edit("more.yaml", &more).await?;
        echoed(Ipv4Addr::new(10, 96, 0, 7), 80, b"\x02hello", "server").await?;
        first.write_all(b"still here").await?;
        heard(&mut first, b"still here").await.context("an edit cut a connection")
    }

    async fn declared_only(&mut self) -> Result<()> {
        self.edit("sidecar.yaml", DECLARED_ONLY).await?;
        undeclared(false).await?;
        echoed(ECHO, 80, b"\x02hello", "server").await?;
        tls().await
    }

    async fn stop(mut self) -> Result<()> {
        self.well().await?;
        drop((self.client, self.server));
        self.controller.stop()
    }
}

/// Start a sidecar.
async fn sidecar(
    binary: &Path,
    node: &str,
    admin: SocketAddr,
    xds: SocketAddr,
    work: &Path,
) -> Result<Envoy> {
    let bootstrap = Bootstrap {
        node_id: node.to_owned(),
        cluster: "sidecar".to_owned(),
        metadata: Map::new(),
        xds_host: xds.ip().to_string(),
        xds_port: xds.port(),
        protocol: Protocol::Delta,
        ..Default::default()
    };
    let work = work.join(admin.ip().to_string());
    std::fs::create_dir(&work)?;
    Envoy::launch(binary, bootstrap, admin, &work).await
}
