//! `make bench`: start, latency of an edit, bytes of an edit, each beside a floor of the same run.
//!
//! In: `ENVOY_BIN`, the binaries beside this one, built for release. Out: a table.
//!
//! **Invariant:** measures from outside: files, a stream of xDS, requests through Envoy, and what
//! Envoy itself counts.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::ResourceType;
use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use house::backend::Backend;
use house::client::Client;
use house::mesh::{Controller, Envoy, GATEWAY_LABELS, GATEWAY_NODE, free_address, replace};
use house::process::sibling;
use house::statistics::percentile;
use notify::Watcher as _;
use serde_json::{Map, Value};
use tonic::transport::Endpoint;

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STARTS: usize = 7;
const EDITS: usize = 60;

/// A mesh of equal services with two versions each, one host per service.
struct Mesh {
    services: usize,
    gateway: SocketAddr,
    backends: [SocketAddr; 2],
}

struct Line {
    what: String,
    measured: String,
    bar: &'static str,
    met: Option<bool>,
    floor: String,
}

/// Latencies and bytes of some edits.
struct Edited {
    answered: Vec<Duration>,
    bytes: Vec<u64>,
    /// Of one request.
    request: Vec<Duration>,
    /// Mean time that the controller's loop spent on a batch.
    batch: Duration,
}

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("bench: this is a debug build; use `make bench`");
    }
    let result =
        tokio::runtime::Runtime::new().map_err(Into::into).and_then(|r| r.block_on(bench()));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: a bar was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<bool> {
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make bench`")?;
    let mut lines = vec![start().await?];
    let mut notified = notification()?;
    let notified = percentile(&mut notified, 50);
    for services in [100, 1000] {
        let Edited { mut answered, mut bytes, mut request, batch } =
            edits(&envoy, services).await?;
        let p50 = percentile(&mut answered, 50);
        lines.push(Line {
            what: format!("edit to new weight answered, {services} hosts"),
            measured: format!(
                "p50 {}, p99 {}",
                milliseconds(p50),
                milliseconds(percentile(&mut answered, 99))
            ),
            bar: if services == 100 { "p50 <= 20 ms" } else { "" },
            met: (services == 100).then_some(p50 <= Duration::from_millis(20)),
            floor: format!(
                "write, notice, read {}; a request {}; of it the controller's loop {}",
                milliseconds(notified),
                milliseconds(percentile(&mut request, 50)),
                milliseconds(batch)
            ),
        });
        if services == 1000 {
            bytes.sort_unstable();
            let median = bytes[bytes.len() / 2];
            lines.push(Line {
                what: format!("bytes to the proxy per edit, {services} hosts"),
                measured: format!("p50 {median} B"),
                bar: "<= 1024 B",
                met: Some(median <= 1024),
                floor: sizes(services)?,
            });
        }
    }
    println!("\n| what | measured | bar | | floor in this run |\n|---|---|---|---|---|");
    for Line { what, measured, bar, met, floor } in &lines {
        let verdict = met.map_or("", |met| if met { "met" } else { "MISSED" });
        println!("| {what} | {measured} | {bar} | {verdict} | {floor} |");
    }
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

/// From the start of the process to the first response on a stream.
async fn start() -> Result<Line> {
    const SERVICES: usize = 100;
    let binary = sibling("heddle-controller")?;
    let (mut served, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let work = tempfile::tempdir()?;
        let mesh = Mesh::new(SERVICES)?;
        mesh.write(work.path())?;
        let began = Instant::now();
        let status = Command::new(&binary).arg("--version").output()?.status;
        ensure!(status.success(), "heddle-controller --version: {status}");
        let mut read = 0;
        for entry in std::fs::read_dir(work.path())? {
            read += std::fs::read_to_string(entry?.path())?.len();
        }
        ensure!(read > 0, "nothing was written");
        floor.push(began.elapsed());

        let log = tempfile::NamedTempFile::new()?;
        let began = Instant::now();
        let controller = Controller::launch(&binary, work.path(), log.path())?;
        let response = first_response(controller.xds).await?;
        served.push(began.elapsed());
        let clusters = response.resources.len();
        ensure!(clusters == 2 * SERVICES, "{clusters} clusters were served, not {}", 2 * SERVICES);
        controller.stop()?;
    }
    let p50 = percentile(&mut served, 50);
    Ok(Line {
        what: format!("start to first config served, {SERVICES} services"),
        measured: format!(
            "p50 {}, max {}",
            milliseconds(p50),
            milliseconds(percentile(&mut served, 100))
        ),
        bar: "<= 1 s",
        met: Some(p50 <= Duration::from_secs(1)),
        floor: format!("start, read the files {}", milliseconds(percentile(&mut floor, 50))),
    })
}

/// Ask for all clusters as an Envoy does, until somebody answers: nobody listens at first, and
/// before its sources are read the controller turns streams away.
async fn first_response(xds: SocketAddr) -> Result<DeltaDiscoveryResponse> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match ask(xds).await {
            Ok(response) => return Ok(response),
            Err(error) => ensure!(Instant::now() < deadline, "{xds} does not answer: {error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn ask(xds: SocketAddr) -> Result<DeltaDiscoveryResponse> {
    let channel = Endpoint::from_shared(format!("http://{xds}"))?.connect().await?;
    let labels: Map<String, Value> =
        GATEWAY_LABELS.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    let metadata = Map::from_iter([("LABELS".to_owned(), Value::Object(labels))]);
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: GATEWAY_NODE.to_owned(),
            metadata: Some(envoy_api::json::to_struct(&metadata)),
            ..Default::default()
        }),
        type_url: ResourceType::Cluster.type_url().to_owned(),
        ..Default::default()
    };
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(64 << 20);
    client.ready().await?;
    let codec: tonic_prost::ProstCodec<DeltaDiscoveryRequest, DeltaDiscoveryResponse> =
        tonic_prost::ProstCodec::default();
    // The stream stays open: it ends with the client.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(request).await?;
    let requests = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let path = http::uri::PathAndQuery::from_static(ADS);
    let mut responses = client.streaming(requests, path, codec).await?.into_inner();
    responses.message().await?.context("the stream ended without a response")
}

/// Times in which a bare program notices that a file was replaced, and reads it.
fn notification() -> Result<Vec<Duration>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file.yaml");
    let (sender, receiver) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // The receiver goes before the watcher; nobody misses what comes then.
        let _ = sender.send(event);
    })?;
    watcher.watch(folder.path(), notify::RecursiveMode::NonRecursive)?;
    let mut times = Vec::new();
    for round in 0..EDITS {
        let began = Instant::now();
        let text = format!("round {round}");
        replace(&file, &text)?;
        loop {
            receiver.recv_timeout(Duration::from_secs(5)).context("no event came")??;
            if std::fs::read_to_string(&file).is_ok_and(|read| read == text) {
                break;
            }
        }
        times.push(began.elapsed());
        while receiver.try_recv().is_ok() {}
    }
    Ok(times)
}

/// Edit one weight again and again, and ask until the answer changes.
async fn edits(envoy: &Path, services: usize) -> Result<Edited> {
    let work = tempfile::tempdir()?;
    let directory = work.path().join("mesh");
    std::fs::create_dir(&directory)?;
    let mesh = Mesh::new(services)?;
    mesh.write(&directory)?;
    let _backends = [
        Backend::start(mesh.backends[0], "v1").await?,
        Backend::start(mesh.backends[1], "v2").await?,
    ];
    let log = work.path().join("controller.log");
    let mut controller =
        Controller::start(&sibling("heddle-controller")?, &directory, &log).await?;
    let proxy = Envoy::start(envoy, controller.xds, work.path()).await?;
    controller.synced(GATEWAY_NODE, 0).await?;
    let index = services / 2;
    let (host, file) = (Mesh::host(index), directory.join(Mesh::rules_file(index)));
    let mut client = Client::new(mesh.gateway);
    answered_by(&mut client, &host, "v1").await?;
    let mut edited = Edited {
        answered: Vec::new(),
        bytes: Vec::new(),
        request: Vec::new(),
        batch: Duration::ZERO,
    };
    let (seconds, batches) = batches(&controller).await?;
    for round in 0..EDITS {
        let (name, weights) = if round % 2 == 0 { ("v2", [0, 100]) } else { ("v1", [100, 0]) };
        let state = controller.synced(GATEWAY_NODE, 0).await?;
        let bytes = proxy.stat("cluster.xds-grpc.upstream_cx_rx_bytes_total").await?;
        let began = Instant::now();
        let answer = client.get(&host, "/").await?;
        edited.request.push(answer.ended - began);
        let began = Instant::now();
        replace(&file, &mesh.rules(index, weights))?;
        answered_by(&mut client, &host, name).await?;
        edited.answered.push(began.elapsed());
        controller.synced(GATEWAY_NODE, state.sent).await?;
        let after = proxy.stat("cluster.xds-grpc.upstream_cx_rx_bytes_total").await?;
        edited.bytes.push(after - bytes);
    }
    let (seconds_after, batches_after) = self::batches(&controller).await?;
    let mean = (seconds_after - seconds) / (batches_after - batches).max(1.0);
    edited.batch = Duration::from_secs_f64(mean);
    drop(proxy);
    controller.stop()?;
    Ok(edited)
}

/// Seconds that the controller's loop spent on batches, and their number.
async fn batches(controller: &Controller) -> Result<(f64, f64)> {
    let host = controller.http.to_string();
    let answer = Client::new(controller.http).get(&host, "/metrics").await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("no metric {name}"))
    };
    Ok((value("heddle_batch_seconds_sum")?, value("heddle_batch_seconds_count")?))
}

/// Ask until this backend answers.
async fn answered_by(client: &mut Client, host: &str, name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = client.get(host, "/").await;
        if answer.as_ref().is_ok_and(|a| a.backend.as_deref() == Some(name)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{name} does not answer for {host}: {answer:?}");
    }
}

/// What one host is by itself, and all of them together.
fn sizes(services: usize) -> Result<String> {
    let mesh = Mesh::new(services)?;
    let mut engine = model::Engine::new();
    let mut changes = Vec::new();
    for (_, text) in mesh.files() {
        let read = config::read(&std::sync::Arc::from("bench"), &text);
        changes.extend(read.objects.into_iter().map(|raw| config::lower(raw).0));
    }
    let capabilities = model::Capabilities { vhds: true, mutual_tls: false };
    let mut proxy = model::Proxy::parse(GATEWAY_NODE, None, capabilities)?;
    proxy.labels = GATEWAY_LABELS.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let connected = vec![(model::ProxyKey(1), proxy)];
    let update = engine.apply(model::Batch { changes, connected, disconnected: Vec::new() });
    let (mut one, mut all) = (0, 0);
    for resource in update.resources.iter().filter_map(|(_, resource)| resource.as_ref()) {
        if let model::ir::Resource::VirtualHost(_) = &**resource {
            let size = translate::encode(resource).0.delta_entry().len();
            (one, all) = (one.max(size), all + size);
        }
    }
    Ok(format!("one host encoded {one} B; all of them {all} B"))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

// === impl Mesh ===

impl Mesh {
    fn new(services: usize) -> Result<Self> {
        let port = free_address()?.port();
        let backend = |n: u8| SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), port));
        Ok(Self { services, gateway: free_address()?, backends: [backend(2), backend(3)] })
    }

    fn host(index: usize) -> String {
        format!("service-{index}.example.com")
    }

    fn rules_file(index: usize) -> String {
        format!("service-{index}-rules.yaml")
    }

    fn write(&self, directory: &Path) -> Result<()> {
        for (file, text) in self.files() {
            std::fs::write(directory.join(file), text)?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, String)> {
        let (ip, port) = (self.gateway.ip(), self.gateway.port());
        let gateway = format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
             selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {port}, name: \
             http, protocol: HTTP}}\n    bind: {ip}\n    hosts: [\"*.example.com\"]\n"
        );
        let mut files = vec![("gateway.yaml".to_owned(), gateway)];
        for index in 0..self.services {
            files.push((format!("service-{index}.yaml"), self.service(index)));
            files.push((Self::rules_file(index), self.rules(index, [100, 0])));
        }
        files
    }

    fn service(&self, index: usize) -> String {
        let port = self.backends[0].port();
        let name = format!("service-{index}");
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: \
             {name}}}\n  ports: [{{name: http, port: 80}}]\n---\napiVersion: \
             networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec:\n  \
             host: {name}\n  subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, \
             labels: {{version: v2}}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
             EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: \
             {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints:\n"
        );
        for (version, backend) in ["v1", "v2"].iter().zip(self.backends) {
            out += &format!(
                "- {{addresses: [{}], targetRef: {{kind: Pod, name: {name}-{version}}}}}\n",
                backend.ip()
            );
        }
        for (version, backend) in ["v1", "v2"].iter().zip(self.backends) {
            out += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{version}, labels: {{app: \
                 {name}, version: {version}}}}}\nstatus: {{podIP: {}}}\n",
                backend.ip()
            );
        }
        out
    }

    fn rules(&self, index: usize, weights: [u32; 2]) -> String {
        let name = format!("service-{index}");
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: \
             {name}}}\nspec:\n  hosts: [{}]\n  gateways: [edge]\n  http:\n  - route:\n    - \
             {{destination: {{host: {name}, subset: v1}}, weight: {}}}\n    - {{destination: {{host: \
             {name}, subset: v2}}, weight: {}}}\n",
            Self::host(index),
            weights[0],
            weights[1],
        )
    }
}
