//! Mutual TLS between real sidecars, each run by a real agent, by a real controller's rules.
//!
//! In: `ENVOY_BIN`; skipped aloud without. Out: what a server hears, and from whom.
//!
//! A server and a client on loopback, without capture: the server's proxy opens its ports at
//! 127.0.1.1, the client's the ports of services at 127.0.0.1.
//!
//! **Invariant:** who is who is read from certificates and from what the server hears, never from
//! what a proxy was sent.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use house::agents::{Agent, Binaries, Pair, Standalone, Workload};
use house::backend::{Backend, Speaks};
use house::client::Client;
use house::mesh::{Envoy, free_address, free_address_of, replace};
use house::process::built;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(10);
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const SERVER_SIDE: Workload<'static> =
    Workload { role: "sidecar", name: "server", address: SERVER, label: "app: server" };
const CLIENT_SIDE: Workload<'static> = Workload {
    role: "sidecar",
    name: "client",
    address: Ipv4Addr::new(127, 0, 1, 2),
    label: "app: client",
};
const HOST: &str = "server.default.svc.cluster.local";
const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/client";

/// Ports of a kind: that of the service, that of the server's proxy, that of the application.
#[derive(Clone, Copy)]
struct Port {
    name: &'static str,
    protocol: &'static str,
    service: SocketAddr,
    proxy: SocketAddr,
    app: SocketAddr,
}

struct Mesh {
    standalone: Standalone,
    ports: Vec<Port>,
    account: &'static str,
    mode: &'static str,
}

// === impl Mesh ===

impl Mesh {
    /// Write what is to hold, all at once.
    fn write(&self) -> Result<()> {
        let list =
            |of: &dyn Fn(&Port) -> String| self.ports.iter().map(of).collect::<Vec<_>>().join("\n");
        let declared = list(&|p| {
            let Port { name, protocol, service, proxy, .. } = p;
            let (number, target) = (service.port(), proxy.port());
            format!(
                "  - {{number: {number}, name: {name}, protocol: {protocol}, targetPort: {target}}}"
            )
        });
        let opened = list(&|p| {
            let Port { protocol, proxy, app, .. } = p;
            format!(
                "  - port: {{number: {}, name: a, protocol: {protocol}}}\n    bind: {SERVER}\n    \
                 captureMode: NONE\n    defaultEndpoint: {app}",
                proxy.port()
            )
        });
        let mesh = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: server}}\n\
             spec:\n  hosts: [{HOST}]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             workloadSelector: {{labels: {{app: server}}}}\n  ports:\n{declared}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: server}}\n\
             spec:\n  address: {SERVER}\n  serviceAccount: {}\n  labels: {{app: server, \
             security.istio.io/tlsMode: istio}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: server}}\n\
             spec:\n  workloadSelector: {{labels: {{app: server}}}}\n  ingress:\n{opened}\n  \
             egress: [{{hosts: [\"~/*\"]}}]\n---\n\
             apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: server}}\nspec: {{selector: {{matchLabels: {{app: server}}}}, \
             mtls: {{mode: {}}}}}\n",
            self.account, self.mode
        );
        replace(&self.standalone.mesh().join("mesh.yaml"), &mesh)
    }

    fn port(&self, name: &str) -> Result<Port> {
        self.ports.iter().find(|p| p.name == name).copied().context("a port")
    }
}

/// A port of each protocol, and the applications behind them.
async fn ports() -> Result<(Vec<Port>, Vec<Backend>)> {
    let kinds = [
        ("http", "HTTP", Speaks::Http),
        ("grpc", "GRPC", Speaks::Http),
        ("echo", "TCP", Speaks::Echo),
        ("first", "TCP", Speaks::First),
    ];
    let (mut ports, mut backends) = (Vec::new(), Vec::new());
    for (name, protocol, speaks) in kinds {
        let backend = Backend::start_as(speaks, (Ipv4Addr::LOCALHOST, 0).into(), name).await?;
        let (service, proxy) = (free_address()?, free_address_of(SERVER)?);
        ports.push(Port { name, protocol, service, proxy, app: backend.address });
        backends.push(backend);
    }
    Ok((ports, backends))
}

/// Say something, if anything, and hear what comes back first.
async fn bytes(address: SocketAddr, say: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(say).await?;
    let mut heard = [0; 256];
    let count = timeout(PATIENCE, stream.read(&mut heard)).await.context("nothing is heard")??;
    Ok(String::from_utf8_lossy(&heard[..count]).into_owned())
}

/// A GET by HTTP/2 with headers of gRPC; what the application heard.
async fn by_http2(address: SocketAddr) -> Result<Value> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{HOST}/a.B/C"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Empty::<Bytes>::new())?;
    let answer = timeout(PATIENCE, sender.send_request(request)).await??;
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(serde_json::from_slice(&body)?)
}

/// What the application heard of a request.
async fn heard(client: &mut Client) -> Result<Value> {
    let answer = client.get(HOST, "/").await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == StatusCode::OK, "{}: {text}", answer.status);
    Ok(serde_json::from_slice(&answer.body)?)
}

/// Try until it holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = holds().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what}: {last:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn given_two_agents_then_their_workloads_prove_who_they_are_and_a_policy_says_who_else_may_come() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(test(&envoy)).unwrap_or_else(|error| panic!("{error:#}"));
}

async fn test(envoy: &Path) -> Result<()> {
    let controller = built(env!("CARGO"), "heddle-controller")?;
    let agent = built(env!("CARGO"), "heddle-agent")?;
    let binaries = Binaries { controller, agent, envoy: envoy.to_owned() };
    let standalone = Standalone::new(binaries, "")?;
    let (ports, _backends) = ports().await?;
    let mut mesh = Mesh { standalone, ports, account: "server", mode: "PERMISSIVE" };
    mesh.write()?;
    let mut controller = mesh.standalone.controller().await?;
    let mut server = mesh.standalone.agent(SERVER_SIDE, Pair::SETTINGS)?;
    let mut client = mesh.standalone.agent(CLIENT_SIDE, Pair::SETTINGS)?;
    server.ready().await?;
    client.ready().await?;

    permissive(&mesh, &server).await?;
    counted(&mesh, &server).await?;

    // A stricter policy under traffic: nobody of the mesh notices.
    let http = mesh.port("http")?;
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn(traffic(http.service, Arc::clone(&stop)));
    sleep(Duration::from_millis(300)).await;
    mesh.mode = "STRICT";
    mesh.write()?;
    until("plain text is still taken", async || {
        Ok(Client::new(http.proxy).get(HOST, "/").await.is_err())
    })
    .await?;
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let (count, failed) = traffic.await?;
    ensure!(failed.is_empty(), "{} of {count} failed: {}", failed.len(), failed[0]);
    ensure!(count > 50, "hardly any traffic: {count}");
    for name in ["grpc", "echo", "first"] {
        let port = mesh.port(name)?;
        let answer = bytes(port.proxy, b"hello").await;
        ensure!(answer.as_deref().map_or(true, str::is_empty), "{name}: {answer:?}");
    }
    ensure!(bytes(mesh.port("echo")?.service, b"hello").await? == "echo hello", "no echo");
    let refused = Ipv4Addr::new(127, 0, 9, 3);
    said_by(refused, http.proxy, "").await.ok();
    until("nobody was refused", async || Ok(connections(&server, refused, "refused").await == 1))
        .await?;

    // A server that proves another account than its endpoints have is nobody.
    mesh.account = "other";
    mesh.write()?;
    until("a wrong server is trusted", async || {
        let answer = Client::new(http.service).get(HOST, "/").await?;
        let refused = client.stat("ssl.fail_verify_san").await?;
        Ok(answer.status == StatusCode::SERVICE_UNAVAILABLE && refused > 0)
    })
    .await?;
    mesh.account = "server";
    mesh.write()?;
    until("the server is back", async || heard(&mut Client::new(http.service)).await.map(|_| true))
        .await?;

    // And without.
    mesh.mode = "DISABLE";
    mesh.write()?;
    until("plain text again", async || {
        let seen = heard(&mut Client::new(http.service)).await?;
        Ok(seen["client"].is_null() && heard(&mut Client::new(http.proxy)).await.is_ok())
    })
    .await?;
    controller.check()
}

/// Mutual TLS where both can, plain text from others.
async fn permissive(mesh: &Mesh, server: &Agent) -> Result<()> {
    let http = mesh.port("http")?;
    // Takes its time before the server speaks, so it begins first.
    let slow = tokio::spawn(bytes(mesh.port("first")?.proxy, b""));

    let seen = heard(&mut Client::new(http.service)).await?;
    let said = seen["client"].as_str().unwrap_or_default();
    ensure!(said.ends_with(&format!(";URI={IDENTITY}")), "the server hears of {seen}");
    ensure!(said.starts_with("By=spiffe://cluster.local/ns/default/sa/server;"), "{said}");
    let listener = format!("listener.{}", http.proxy.to_string().replace(':', "_"));
    ensure!(server.stat(&format!("{listener}.ssl.handshake")).await? > 0, "no handshake");

    let seen = by_http2(mesh.port("grpc")?.service).await?;
    ensure!(seen["version"] == "HTTP/2.0" && seen["client"] == said, "{seen}");
    ensure!(bytes(mesh.port("echo")?.service, b"hello").await? == "echo hello", "no echo");
    // The client of the mesh waits for nothing.
    let began = Instant::now();
    ensure!(bytes(mesh.port("first")?.service, b"").await? == "first ", "nobody speaks");
    ensure!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let echo = format!("listener.{}", mesh.port("echo")?.proxy.to_string().replace(':', "_"));
    ensure!(server.stat(&format!("{echo}.ssl.handshake")).await? > 0, "no handshake");

    // Anybody else: whom he claims to speak for is not passed on.
    let seen = heard(&mut Client::new(http.proxy)).await?;
    ensure!(seen["client"].is_null(), "a stranger is taken for {seen}");
    let mut stranger = TcpStream::connect(http.proxy).await?;
    let forged = format!(
        "GET / HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-client-cert: URI={IDENTITY}\r\n\
         connection: close\r\n\r\n"
    );
    stranger.write_all(forged.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stranger.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200") && !answer.contains(IDENTITY), "{answer}");
    ensure!(bytes(mesh.port("echo")?.proxy, b"hello").await? == "echo hello", "no echo");
    ensure!(slow.await?? == "first ", "a plain client hears nothing");
    Ok(())
}

/// A connection in plain text from an address, which says something and is heard; it stays open.
async fn said_by(from: Ipv4Addr, to: SocketAddr, expected: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect(to).await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).await?;
        let mut heard = [0; 4096];
        let count = timeout(PATIENCE, stream.read(&mut heard)).await.context("nothing")??;
        let heard = String::from_utf8_lossy(&heard[..count]);
        ensure!(count > 0 && heard.starts_with(expected), "{heard}");
    }
    Ok(stream)
}

/// Connections from an address that the agent has counted.
async fn connections(agent: &Agent, source: Ipv4Addr, security: &str) -> u64 {
    let labels = format!("{{security=\"{security}\",source=\"{source}\"}}");
    // What was never counted is not there.
    agent.metric(&format!("heddle_inbound_connections_total{labels}")).await.unwrap_or_default()
}

/// The agent knows who came by mutual TLS, and who in plain text while he is there.
async fn counted(mesh: &Mesh, server: &Agent) -> Result<()> {
    let (http, echo) = (mesh.port("http")?, mesh.port("echo")?);
    let [asks, talks] = [1, 2].map(|last| Ipv4Addr::new(127, 0, 9, last));
    let open = [
        said_by(asks, http.proxy, "HTTP/1.1 200").await?,
        said_by(talks, echo.proxy, "echo GET").await?,
    ];
    for source in [asks, talks] {
        until("plain text is not counted", async || {
            Ok(connections(server, source, "none").await > 0)
        })
        .await?;
    }
    drop(open);
    ensure!(bytes(echo.service, b"hello").await? == "echo hello", "no echo");
    until("mutual TLS is not counted", async || {
        Ok(connections(server, Ipv4Addr::LOCALHOST, "mutual_tls").await > 0)
    })
    .await?;
    // Once each, whatever was said, and nothing else.
    for source in [asks, talks] {
        let seen = [
            connections(server, source, "none").await,
            connections(server, source, "mutual_tls").await,
        ];
        ensure!(seen == [1, 0], "{source}: {seen:?}");
    }
    Ok(())
}

/// Requests, one after the other: how many, and which failed.
async fn traffic(service: SocketAddr, stop: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let (mut client, mut count, mut failed) = (Client::new(service), 0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        match heard(&mut client).await {
            Ok(seen) if !seen["client"].is_null() => {}
            other => failed.push(format!("{other:?}")),
        }
        sleep(Duration::from_millis(2)).await;
    }
    (count, failed)
}
