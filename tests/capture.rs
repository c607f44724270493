//! A real Envoy beside a workload: connections of the workload are captured, as in a pod.
//!
//! In: `ENVOY_BIN`, root, `unshare`, `ip`, `iptables`; skipped aloud without one of them. Out: what
//! comes back to a client that connects to addresses of services.
//!
//! The test starts itself again in a network namespace of its own, whose loopback has the addresses
//! of backends. Connections to addresses of services, which nobody has, are redirected to Envoy.
//!
//! **Invariant:** nothing outside of that namespace is touched, and it ends with the process.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::bootstrap::{Bootstrap, Protocol};
use house::backend::Backend;
use house::client::Client;
use house::mesh::{Controller, Envoy, free_address, replace};
use house::namespace::{self, run};
use house::process::built;
use serde_json::Map;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const NODE: &str = "sidecar~127.0.0.1~client-0.default~default.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of services: nobody has them.
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ECHO: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const GREETER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 3);
const UNNAMED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 4);

const SERVICES: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: client-0, namespace: default, labels: { app: client } }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec: { clusterIP: 10.96.0.1, selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: echo, namespace: default }
spec: { clusterIP: 10.96.0.2, selector: { app: echo }, ports: [{ name: tcp, port: 80, targetPort: 9000 }] }
---
apiVersion: v1
kind: Service
metadata: { name: greeter, namespace: shop }
spec: { clusterIP: 10.96.0.3, selector: { app: greeter }, ports: [{ name: tcp, port: 80, targetPort: 9000 }] }
---
apiVersion: v1
kind: Service
metadata: { name: unnamed, namespace: shop }
spec: { clusterIP: 10.96.0.4, selector: { app: web }, ports: [{ port: 8000, targetPort: 8080 }] }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web, namespace: default }
spec: { host: web, subsets: [{ name: v1, labels: { version: v1 } }, { name: v2, labels: { version: v2 } }] }
"#;

/// Endpoints of a service: pods by address, with the label `version`.
fn endpoints(namespace: &str, service: &str, port: u16, pods: &[(&str, &str)]) -> String {
    let named = if service == "unnamed" {
        ""
    } else if port == 8080 {
        "http"
    } else {
        "tcp"
    };
    let mut out = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {service}-1, namespace: {namespace}, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         addressType: IPv4\nports: [{{ name: \"{named}\", port: {port} }}]\nendpoints:\n"
    );
    for (address, _) in pods {
        out.push_str(&format!("- {{ addresses: [{address}] }}\n"));
    }
    for (address, version) in pods {
        let name = format!("{service}-{version}");
        out.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: {service}, version: {version} }} }}\nstatus: {{ podIP: {address} }}\n"
        ));
    }
    out + "---\n"
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

#[test]
fn given_a_workload_when_its_connections_are_captured_then_each_reaches_what_it_was_meant_for() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let controller =
        || Ok(built(env!("CARGO"), "heddle-controller")?.to_string_lossy().into_owned());
    if namespace::is_within(controller) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let controller = PathBuf::from(namespace::carried());
        runtime.block_on(captured(&envoy, &controller)).expect("the workload is served");
    }
}

async fn captured(envoy_binary: &Path, controller_binary: &Path) -> Result<()> {
    run("ip link set lo up")?;
    for last in 1..=4 {
        run(&format!("ip address add 10.1.0.{last}/32 dev lo"))?;
    }
    run("ip route add 10.96.0.0/16 dev lo")?;
    run("iptables -t nat -A OUTPUT -p tcp -d 10.96.0.0/16 -j REDIRECT --to-ports 15001")?;

    let backend = |last: u8| SocketAddr::from(([10, 1, 0, last], 8080));
    let _v1 = Backend::start(backend(1), "v1").await?;
    let _v2 = Backend::start(backend(2), "v2").await?;
    let echo = TcpListener::bind(("10.1.0.3", 9000)).await?;
    let greeter = TcpListener::bind(("10.1.0.4", 9000)).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = greeter.accept().await {
            let _ = stream.write_all(b"welcome").await;
            // Held until the client has gone.
            let _ = stream.read(&mut [0]).await;
        }
    });

    let work = tempfile::tempdir()?;
    let files = work.path().join("mesh");
    std::fs::create_dir(&files)?;
    let web = [("10.1.0.1", "v1"), ("10.1.0.2", "v2")];
    let slices = endpoints("default", "web", 8080, &web)
        + &endpoints("default", "echo", 9000, &[("10.1.0.3", "v1")])
        + &endpoints("shop", "greeter", 9000, &[("10.1.0.4", "v1")])
        + &endpoints("shop", "unnamed", 8080, &web[..1]);
    replace(&files.join("services.yaml"), SERVICES)?;
    replace(&files.join("endpoints.yaml"), &slices)?;
    replace(&files.join("rules.yaml"), &rules("v1"))?;
    let log = work.path().join("controller.log");
    let mut controller = Controller::start(controller_binary, &files, &log).await?;
    let admin = free_address()?;
    let bootstrap = Bootstrap {
        node_id: NODE.to_owned(),
        cluster: "client".to_owned(),
        metadata: Map::new(),
        xds_host: controller.xds.ip().to_string(),
        xds_port: controller.xds.port(),
        protocol: Protocol::Delta,
        admin_address: Some((admin.ip().to_string(), admin.port())),
        ..Default::default()
    };
    let file = work.path().join("envoy.json");
    std::fs::write(&file, bootstrap.to_json().to_string())?;
    let mut envoy = Envoy::from_file(envoy_binary, &file, admin, work.path()).await?;
    let state = controller.synced(NODE, 0).await?;
    ensure!(state.rejected == 0, "rejected: {:?}", state.errors);
    ensure!(envoy.warming().await?.is_empty(), "warming: {:?}", envoy.warming().await?);

    // HTTP by rules, by every name of the service.
    let mut web = Client::new((WEB, 80).into());
    for host in ["web", "web.default", "web.default.svc.cluster.local", "10.96.0.1"] {
        served(&mut web, host, "/", "v1").await?;
        served(&mut web, host, "/v2/x", "v2").await?;
    }
    let answer = web.get("web", "/mine").await?;
    ensure!(answer.status == 418, "a rule for this workload: {answer:?}");
    // TCP on the same port, and a protocol in which the server speaks first.
    let mut stream = connect(ECHO, 80).await?;
    stream.write_all(b"hello").await?;
    ensure!(read(&mut stream, 5).await? == b"hello", "echo");
    let began = Instant::now();
    let mut stream = connect(GREETER, 80).await?;
    ensure!(read(&mut stream, 7).await? == b"welcome", "greeting");
    ensure!(began.elapsed() < Duration::from_secs(2), "greeted after {:?}", began.elapsed());
    // A port of which nothing is said.
    let mut unnamed = Client::new((UNNAMED, 8000).into());
    served(&mut unnamed, "unnamed.shop", "/", "v1").await?;

    // An edit moves requests and keeps connections.
    let before = controller.revision(&mut Client::new(controller.admin)).await?;
    replace(&files.join("rules.yaml"), &rules("v2"))?;
    let state = controller.settled(NODE, before).await?;
    ensure!(state.rejected == 0, "rejected: {:?}", state.errors);
    tokio::time::sleep(Duration::from_millis(250)).await;
    served(&mut web, "web", "/", "v2").await?;
    stream.write_all(b"x").await.context("a connection that an edit must not cut")?;
    ensure!(envoy.warming().await?.is_empty(), "warming: {:?}", envoy.warming().await?);
    envoy.check()?;
    controller.stop()
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

async fn connect(address: Ipv4Addr, port: u16) -> Result<TcpStream> {
    Ok(timeout(PATIENCE, TcpStream::connect((address, port))).await??)
}

async fn read(stream: &mut TcpStream, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.context("nothing came")??;
    Ok(bytes)
}
