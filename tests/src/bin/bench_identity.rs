//! Measures the certificate service of a running controller, beside the bare work of it.
//!
//! In: the controller beside this binary, built for release. Out: a table: certificates per second
//! on kept connections and with a new mutual TLS connection each, latency at a fixed rate, and how
//! late an edit reaches a proxy meanwhile; the bare parse, verify and sign of the same run stands
//! beside them.
//!
//! **Invariant:** the load comes from outside, over TLS; every answer is counted or fails the run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use house::mesh::{Controller, GATEWAY_LABELS, GATEWAY_NODE, free_address, replace};
use house::process::{Processor, sibling};
use house::statistics::percentile;
use identity::folder::read_ca;
use identity::{Authority, CertifiedRequest, PrivateKey, SpiffeId, client, tls};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Connections that are kept, each of a workload of its own.
const CONNECTIONS: usize = 100;
/// Requests under way on each of them.
const AT_ONCE: usize = 2;
/// New connections being made at once.
const CONNECTING: usize = 16;
const SPAN: Duration = Duration::from_secs(5);
const RATE: u64 = 1000;
const EDITS: usize = 60;

/// A workload with its certificate and a request for the next.
struct Workload {
    key: PrivateKey,
    chain: Vec<identity::pem::CertificateDer<'static>>,
    csr: String,
}

/// The authority of a running controller.
struct Target {
    address: SocketAddr,
    authority: Authority,
}

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench_identity: this is a debug build; use `make bench`");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let work = tempfile::tempdir()?;
    let directory = work.path().join("mesh");
    std::fs::create_dir(&directory)?;
    let gateway = free_address()?;
    std::fs::write(directory.join("mesh.yaml"), mesh(gateway, 1))?;
    let address = free_address()?;
    let identity = work.path().join("identity");
    let more = [
        "--identity-directory".to_owned(),
        identity.display().to_string(),
        "--secure-address".to_owned(),
        address.to_string(),
    ];
    let log = work.path().join("controller.log");
    let binary = sibling("heddle-controller")?;
    let mut controller = Controller::launch_with(&binary, &directory, &log, &more)?;
    controller.ready().await?;
    let files = read_ca(&identity.join("ca"))?;
    let authority = Authority::from_files(&files, SystemTime::now())?;
    let target = Target { address, authority };

    let workloads: Vec<_> = (0..CONNECTIONS).map(|n| target.workload(n)).collect::<Result<_>>()?;
    let workloads: Vec<_> = workloads.into_iter().map(Arc::new).collect();
    let own = Processor::of(std::process::id());
    let (bare, bare_cost) = target.bare(&workloads, &own)?;
    let server = Processor::of(controller.process().child()?);
    let quiet = staleness(controller.xds, &directory, gateway, 0).await?;
    let channels = target.connect_all(&workloads).await?;
    let (kept, kept_cost) = cost(&server, storm(&channels, &workloads, SPAN)).await?;
    let (p50, p99) = paced(&channels, &workloads).await?;
    let (fresh, fresh_cost) = cost(&server, target.new_connections(&workloads)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&channels, &workloads, &stop);
    let busy = staleness(controller.xds, &directory, gateway, 1).await?;
    stop.store(true, Ordering::Relaxed);
    for ended in load.join_all().await {
        ended?;
    }
    controller.stop()?;

    println!("{:<44} {:>12} {:>12}", "what", "measured", "bar");
    let mut missed = 0;
    let mut line = |what: &str, measured: String, bar: &str, good: bool| {
        missed += usize::from(!good);
        let mark = if good { "" } else { "missed" };
        println!("{what:<44} {measured:>12} {bar:>12}  {mark}");
    };
    let per_second = |rate: f64| format!("{rate:.0}/s");
    line("bare parse, verify, sign, one thread", per_second(bare), "", true);
    line("certificates, kept connections", per_second(kept), ">= 8000/s", kept >= 8000.0);
    let ratio = bare / kept;
    line("bare to kept", format!("{ratio:.2}"), "<= 1.60", ratio <= 1.6);
    // On a machine that has other work these say more than rates.
    let micros = |seconds: f64| format!("{:.0} us", seconds * 1e6);
    line("processor time of a bare one", micros(bare_cost), "", true);
    line("of the controller, kept connections", micros(kept_cost), "", true);
    line("of the controller, a new connection each", micros(fresh_cost), "", true);
    line(
        "certificates, a new mTLS connection each",
        per_second(fresh),
        ">= 2500/s",
        fresh >= 2500.0,
    );
    let millis = |d: Duration| format!("{:.2} ms", d.as_secs_f64() * 1000.0);
    line(&format!("latency at {RATE}/s, p50"), millis(p50), "", true);
    let fast = p99 <= Duration::from_millis(10);
    line(&format!("latency at {RATE}/s, p99"), millis(p99), "<= 10 ms", fast);
    line("edit to proxy, quiet, p50", millis(quiet), "", true);
    line("edit to proxy, in the storm, p50", millis(busy), "", true);
    let ratio = busy.as_secs_f64() / quiet.as_secs_f64();
    line("storm to quiet", format!("{ratio:.2}"), "<= 1.30", ratio <= 1.3);
    ensure!(missed == 0, "{missed} bars were missed");
    Ok(())
}

/// The rate that a load comes to, and what one of its requests cost this process.
async fn cost(
    server: &Processor,
    load: impl Future<Output = Result<(f64, f64)>>,
) -> Result<(f64, f64)> {
    let before = server.seconds()?;
    let (rate, count) = load.await?;
    Ok((rate, (server.seconds()? - before) / count))
}

// === impl Target ===

impl Target {
    fn workload(&self, number: usize) -> Result<Workload> {
        let id: SpiffeId = format!("spiffe://cluster.local/ns/bench/sa/w{number}").parse()?;
        let key = PrivateKey::generate()?;
        let csr = client::csr(&key, None)?;
        let request = CertifiedRequest::check(csr.as_bytes(), &id)?;
        let hour = Duration::from_secs(3600);
        let issued = self.authority.issue(&id, &request, hour, SystemTime::now())?;
        Ok(Workload { key, chain: vec![issued.der], csr })
    }

    /// The work without a network: requests per second on one thread, and what one costs.
    fn bare(&self, workloads: &[Arc<Workload>], own: &Processor) -> Result<(f64, f64)> {
        let id: SpiffeId = "spiffe://cluster.local/ns/bench/sa/bare".parse()?;
        let hour = Duration::from_secs(3600);
        let (began, before, mut count) = (Instant::now(), own.seconds()?, 0u32);
        while began.elapsed() < SPAN / 2 {
            for workload in workloads {
                let request = CertifiedRequest::check(workload.csr.as_bytes(), &id)?;
                self.authority.issue(&id, &request, hour, SystemTime::now())?;
                count += 1;
            }
        }
        let count = f64::from(count);
        let cost = (own.seconds()? - before) / count;
        Ok((count / began.elapsed().as_secs_f64(), cost))
    }

    async fn connect(&self, workload: &Workload) -> Result<Channel> {
        let certificate = Some((workload.chain.clone(), &workload.key));
        let config = tls::client_config(self.authority.roots(), certificate)?;
        Ok(client::connect(&self.address.to_string(), config).await?)
    }

    async fn connect_all(&self, workloads: &[Arc<Workload>]) -> Result<Vec<Channel>> {
        let mut out = Vec::new();
        for workload in workloads {
            out.push(self.connect(workload).await?);
        }
        Ok(out)
    }

    /// Certificates per second, each over a connection of its own.
    async fn new_connections(&self, workloads: &[Arc<Workload>]) -> Result<(f64, f64)> {
        let configs = workloads.iter().map(|workload| {
            let certificate = Some((workload.chain.clone(), &workload.key));
            Ok((tls::client_config(self.authority.roots(), certificate)?, workload.csr.clone()))
        });
        let configs: Arc<Vec<_>> = Arc::new(configs.collect::<Result<_>>()?);
        let count = Arc::new(AtomicU64::new(0));
        let (began, address) = (Instant::now(), self.address.to_string());
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for first in 0..CONNECTING {
            let (configs, count, address) =
                (Arc::clone(&configs), Arc::clone(&count), address.clone());
            tasks.spawn(async move {
                for (config, csr) in configs.iter().cycle().skip(first) {
                    if began.elapsed() > SPAN {
                        break;
                    }
                    let channel = client::connect(&address, config.clone()).await?;
                    client::request(&channel, None, csr.clone(), None).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        for ended in tasks.join_all().await {
            ended?;
        }
        let count = count.load(Ordering::Relaxed) as f64;
        Ok((count / began.elapsed().as_secs_f64(), count))
    }
}

/// Certificates per second on connections that are kept, and how many.
async fn storm(
    channels: &[Channel],
    workloads: &[Arc<Workload>],
    span: Duration,
) -> Result<(f64, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let tasks = load(channels, workloads, &stop);
    tokio::time::sleep(span).await;
    stop.store(true, Ordering::Relaxed);
    let mut count = 0;
    for ended in tasks.join_all().await {
        count += ended?;
    }
    let count = f64::from(count);
    Ok((count / began.elapsed().as_secs_f64(), count))
}

/// Ask without a pause until told to stop; each task gives its count.
fn load(
    channels: &[Channel],
    workloads: &[Arc<Workload>],
    stop: &Arc<AtomicBool>,
) -> JoinSet<Result<u32>> {
    let mut tasks = JoinSet::new();
    for (channel, workload) in channels.iter().zip(workloads) {
        for _ in 0..AT_ONCE {
            let (channel, workload) = (channel.clone(), Arc::clone(workload));
            let stop = Arc::clone(stop);
            tasks.spawn(async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    client::request(&channel, None, workload.csr.clone(), None).await?;
                    count += 1;
                }
                Ok(count)
            });
        }
    }
    tasks
}

/// Latency, p50 and p99, at a fixed rate; a late answer does not hold up the next request.
async fn paced(channels: &[Channel], workloads: &[Arc<Workload>]) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let mut tasks: JoinSet<Result<Duration>> = JoinSet::new();
    for number in 0..RATE * SPAN.as_secs() {
        let due = began + Duration::from_micros(number * 1_000_000 / RATE);
        tokio::time::sleep_until(due.into()).await;
        let index = number as usize % channels.len();
        let (channel, workload) = (channels[index].clone(), Arc::clone(&workloads[index]));
        tasks.spawn(async move {
            let began = Instant::now();
            client::request(&channel, None, workload.csr.clone(), None).await?;
            Ok(began.elapsed())
        });
    }
    let mut times = tasks.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok((percentile(&mut times, 50), percentile(&mut times, 99)))
}

/// A gateway, a service behind it and its policy, which is what is edited.
fn mesh(gateway: SocketAddr, connections: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {}, name: http, \
         protocol: HTTP}}\n    bind: {}\n    hosts: [\"*\"]\n---\napiVersion: v1\nkind: \
         Service\nmetadata: {{name: shop}}\nspec: {{ports: [{{port: 80, name: http}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop}}\n\
         spec:\n  hosts: [shop.example.com]\n  gateways: [edge]\n  http:\n  - route: \
         [{{destination: {{host: shop}}}}]\n---\napiVersion: networking.istio.io/v1\nkind: \
         DestinationRule\nmetadata: {{name: shop}}\nspec: {{host: shop, trafficPolicy: \
         {{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}}}\n",
        gateway.port(),
        gateway.ip()
    )
}

/// Median time from an edit until a proxy is sent the cluster that it changes.
async fn staleness(
    xds: SocketAddr,
    directory: &Path,
    gateway: SocketAddr,
    round: usize,
) -> Result<Duration> {
    let channel = Channel::from_shared(format!("http://{xds}"))?.connect().await?;
    let labels: Map<String, Value> =
        GATEWAY_LABELS.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    let metadata = Map::from_iter([("LABELS".to_owned(), Value::Object(labels))]);
    let (requests, outgoing) = mpsc::channel(16);
    let mut ask = DeltaDiscoveryRequest {
        node: Some(Node {
            id: GATEWAY_NODE.to_owned(),
            metadata: Some(envoy_api::json::to_struct(&metadata)),
            ..Default::default()
        }),
        type_url: envoy_api::ResourceType::Cluster.type_url().to_owned(),
        ..Default::default()
    };
    requests.send(ask.clone()).await?;
    ask.node = None;
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(outgoing).await?.into_inner();
    let mut times = Vec::new();
    for edit in 0..=EDITS {
        let began = Instant::now();
        if edit > 0 {
            let connections = 2 + round * EDITS + edit;
            replace(&directory.join("mesh.yaml"), &mesh(gateway, connections))?;
        }
        let next = tokio::time::timeout(Duration::from_secs(10), responses.message()).await;
        let response = next.context("no response to an edit")??.context("the stream ended")?;
        if edit > 0 {
            times.push(began.elapsed());
        }
        ask.response_nonce = response.nonce;
        requests.send(ask.clone()).await?;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(percentile(&mut times, 50))
}
