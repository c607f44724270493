//! Part of `make bench`: what a sidecar is sent, and what a real Envoy makes of it.
//!
//! In: `ENVOY_BIN`, the binaries beside this one, built for release. Out: a table.
//!
//! As root it runs in a network namespace of its own; else ports 15001 and 15006 must be free.
//!
//! **Invariant:** measures from outside: files, and what Envoy and the kernel count.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::bootstrap::Bootstrap;
use house::client::Client;
use house::mesh::{Controller, Envoy, free_address, replace};
use house::process::sibling;
use serde_json::{Map, json};

const NODE: &str = "sidecar~10.0.0.7~client-0.default~default.svc.cluster.local";
const WITHIN: &str = "HEDDLE_BENCH_WITHIN_NAMESPACE";
const RECEIVED: &str = "cluster.xds-grpc.upstream_cx_rx_bytes_total";
const ENDPOINTS: usize = 10;
const EDITS: usize = 21;
const PATIENCE: Duration = Duration::from_secs(60);

struct Line {
    what: &'static str,
    measured: String,
    bar: &'static str,
    met: Option<bool>,
    beside: String,
}

/// A controller and one sidecar of it that has everything.
struct Running {
    controller: Controller,
    proxy: Envoy,
    /// From the start of Envoy until it says that it is ready.
    ready: Duration,
    /// Bytes that it was sent until then.
    received: u64,
}

fn main() -> ExitCode {
    if let Some(code) = within_a_namespace() {
        return code;
    }
    let result =
        tokio::runtime::Runtime::new().map_err(Into::into).and_then(|r| r.block_on(bench()));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench_sidecar: a bar was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench_sidecar failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Run again in a network namespace, where the ports of a sidecar are free; none where that cannot
/// be, or is done.
fn within_a_namespace() -> Option<ExitCode> {
    let root = Command::new("unshare").args(["--net", "true"]).output();
    if std::env::var_os(WITHIN).is_some() || !root.is_ok_and(|o| o.status.success()) {
        return None;
    }
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\""])
        .arg(std::env::current_exe().ok()?)
        .env(WITHIN, "1")
        .status();
    Some(if status.is_ok_and(|s| s.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bench() -> Result<bool> {
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make bench`")?;
    let empty = empty(&envoy).await?;
    let mut lines = Vec::new();

    let work = tempfile::tempdir()?;
    let files = work.path().join("mesh");
    write(&files, 5000)?;
    replace(&files.join("sidecar.yaml"), &narrowed(5))?;
    let running = Running::start(&envoy, &files, work.path()).await?;
    let kilobytes = running.received as f64 / 1000.0;
    lines.push(Line {
        what: "config of a sidecar, 5 of 5,000 services",
        measured: format!("{kilobytes:.1} KB"),
        bar: "<= 50 KB",
        met: Some(kilobytes <= 50.0),
        beside: format!("ready after {:.0?}", running.ready),
    });
    let resident = mebibytes(running.proxy.process().resident()?);
    let empty = mebibytes(empty);
    // The pages of its binary that an Envoy has mapped differ between machines: 65 MiB were meant
    // where an empty one takes 55.
    lines.push(Line {
        what: "memory of its Envoy",
        measured: format!("{resident:.1} MiB"),
        bar: "<= empty + 10 MiB",
        met: Some(resident <= empty + 10.0),
        beside: format!("an empty Envoy {empty:.1} MiB"),
    });
    running.stop()?;

    let work = tempfile::tempdir()?;
    let files = work.path().join("mesh");
    write(&files, 1000)?;
    let mut running = Running::start(&envoy, &files, work.path()).await?;
    let resident = mebibytes(running.proxy.process().resident()?);
    lines.push(Line {
        what: "config of a sidecar, all of 1,000 services",
        measured: format!("{:.1} KB", running.received as f64 / 1000.0),
        bar: "",
        met: None,
        beside: format!("ready after {:.0?}, memory {resident:.1} MiB", running.ready),
    });
    let weights = running.edits(&files.join("rules.yaml"), |n| rules(n % 2 * 10)).await?;
    lines.push(Line {
        what: "one step of a weight, to that sidecar",
        measured: format!("p50 {weights} B"),
        bar: "<= 1024 B",
        met: Some(weights <= 1024),
        beside: format!("{EDITS} edits"),
    });
    let edited = files.join("edited.yaml");
    let slice = running.edits(&edited, |n| service(0, ENDPOINTS + n % 2)).await?;
    lines.push(Line {
        what: "one endpoint more or less, to that sidecar",
        measured: format!("p50 {slice} B"),
        bar: "<= 2048 B",
        met: Some(slice <= 2048),
        beside: format!("of {ENDPOINTS}; {EDITS} edits"),
    });
    running.stop()?;

    println!("\n| what | measured | bar | | beside it |\n|---|---|---|---|---|");
    for Line { what, measured, bar, met, beside } in &lines {
        let verdict = met.map_or("", |met| if met { "met" } else { "MISSED" });
        println!("| {what} | {measured} | {bar} | {verdict} | {beside} |");
    }
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

/// Memory of an Envoy that has nothing but admin pages. Unit: bytes.
async fn empty(envoy: &Path) -> Result<u64> {
    let work = tempfile::tempdir()?;
    let admin = free_address()?;
    let address = json!({"address": admin.ip().to_string(), "port_value": admin.port()});
    let file = work.path().join("envoy.json");
    let config = json!({"admin": {"address": {"socket_address": address}}});
    std::fs::write(&file, config.to_string())?;
    let proxy = Envoy::from_file(envoy, &file, admin, work.path()).await?;
    ready(&proxy).await?;
    proxy.process().resident()
}

async fn ready(proxy: &Envoy) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = Client::new(proxy.admin);
    while !client.get("admin", "/ready").await.is_ok_and(|a| a.status == 200) {
        ensure!(Instant::now() < deadline, "Envoy is not ready after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Services of HTTP, every fifth with a port of TCP too; the first stands alone, to be edited.
fn write(directory: &Path, services: usize) -> Result<()> {
    std::fs::create_dir(directory)?;
    let all: String = (1..services).map(|index| service(index, ENDPOINTS)).collect();
    replace(&directory.join("services.yaml"), &all)?;
    replace(&directory.join("edited.yaml"), &service(0, ENDPOINTS))?;
    replace(&directory.join("rules.yaml"), &rules(0))
}

fn service(index: usize, endpoints: usize) -> String {
    let (high, low) = (index / 250, index % 250 + 1);
    let tcp = index.is_multiple_of(5);
    let more = if tcp { ", { name: tcp, port: 3306 }" } else { "" };
    let mut out = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: service-{index}, namespace: default }}\n\
         spec: {{ clusterIP: 10.96.{high}.{low}, selector: {{ app: service-{index} }}, \
         ports: [{{ name: http, port: 80 }}{more}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: service-{index}, namespace: default, \
         labels: {{ kubernetes.io/service-name: service-{index} }} }}\n\
         addressType: IPv4\nports: [{{ name: http, port: 8080 }}{more}]\nendpoints:\n"
    );
    for endpoint in 1..=endpoints {
        let _ = writeln!(out, "- {{ addresses: [10.{}.{high}.{low}] }}", 100 + endpoint);
    }
    out + "---\n"
}

/// A split between two services.
fn rules(weight: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{ name: split, namespace: default }}\nspec:\n  hosts: [service-0]\n  http:\n  - route:\n\
         \x20   - {{ destination: {{ host: service-0 }}, weight: {} }}\n\
         \x20   - {{ destination: {{ host: service-1 }}, weight: {} }}\n",
        50 + weight,
        50 - weight
    )
}

/// A Sidecar for the workload here, with the first services alone.
fn narrowed(services: usize) -> String {
    let hosts: Vec<String> =
        (0..services).map(|n| format!("./service-{n}.default.svc.cluster.local")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{ name: default, namespace: default }}\n\
         spec: {{ egress: [{{ hosts: [{}] }}] }}\n",
        hosts.join(", ")
    )
}

// === impl Running ===

impl Running {
    async fn start(envoy: &Path, files: &Path, work: &Path) -> Result<Self> {
        let log: PathBuf = work.join("controller.log");
        let binary = sibling("heddle-controller")?;
        let mut controller = Controller::start(&binary, files, &log).await?;
        let admin = free_address()?;
        let bootstrap = Bootstrap {
            node_id: NODE.to_owned(),
            cluster: "client".to_owned(),
            metadata: Map::from_iter([("LABELS".to_owned(), json!({"app": "client"}))]),
            xds_host: controller.xds.ip().to_string(),
            xds_port: controller.xds.port(),
            admin_address: Some((admin.ip().to_string(), admin.port())),
            ..Default::default()
        };
        let file = work.join("envoy.json");
        std::fs::write(&file, bootstrap.to_json().to_string())?;
        let began = Instant::now();
        let proxy = Envoy::from_file(envoy, &file, admin, work).await?;
        ready(&proxy).await?;
        let ready = began.elapsed();
        let state = controller.synced(NODE, 0).await?;
        ensure!(state.rejected == 0, "rejected: {:?}", state.errors);
        ensure!(proxy.warming().await?.is_empty(), "something is warming");
        let received = proxy.stat(RECEIVED).await?;
        Ok(Self { controller, proxy, ready, received })
    }

    /// Median of the bytes that the proxy was sent for an edit.
    async fn edits(&mut self, file: &Path, text: impl Fn(usize) -> String) -> Result<u64> {
        let mut admin = Client::new(self.controller.admin);
        let mut bytes = Vec::new();
        for round in 1..=EDITS {
            let before = self.proxy.stat(RECEIVED).await?;
            let revision = self.controller.revision(&mut admin).await?;
            replace(file, &text(round))?;
            let state = self.controller.settled(NODE, revision).await?;
            ensure!(state.rejected == 0, "rejected: {:?}", state.errors);
            let received = self.proxy.stat(RECEIVED).await? - before;
            ensure!(received > 0, "an edit of {} sent nothing", file.display());
            bytes.push(received);
        }
        bytes.sort_unstable();
        Ok(bytes[bytes.len() / 2])
    }

    fn stop(self) -> Result<()> {
        drop(self.proxy);
        self.controller.stop()
    }
}
