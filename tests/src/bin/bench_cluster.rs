//! `make bench-cluster`: how fast the controller reads a large cluster, what it takes, and how long
//! a write takes to a proxy.
//!
//! In: root; `heddle-controller` beside this binary, built for release. Out: a table; the exit code
//! is not 0 when a bar is missed.
//!
//! Started plainly it brings up etcd and an API server (`PROFILE=api tests/cluster/with`) and starts
//! itself again inside. The floor of a write is a bare watch of the same API server in this process.
//!
//! **Invariant:** measures from outside: the API server, a stream of xDS, `/proc`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use config::{KINDS, crd};
use envoy_api::envoy::config::core::v3::Node;
use envoy_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use house::client::Client as Http;
use house::mesh::free_address;
use house::process::{Leashed, sibling};
use house::statistics::percentile;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::discovery::ApiResource;
use kube::{Client, core::GroupVersionKind};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tonic::transport::Channel;

const INSIDE: &str = "--inside";
const NAMESPACE: &str = "default";
const SERVICES: usize = 5_000;
const ENDPOINTS_EACH: usize = 10;
const PODS: usize = 20_000;
const WRITES: usize = 300;
/// Requests under way while the cluster is filled.
const AT_ONCE: usize = 64;

/// Bars: time to read everything, memory, and a write at the median and the 99th percentile.
const SYNC: Duration = Duration::from_secs(10);
const MEMORY: u64 = 350;
const WRITE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(25));

fn main() -> ExitCode {
    let inside = std::env::args().any(|a| a == INSIDE);
    let result = if inside { measure() } else { outside() };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench_cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn outside() -> Result<bool> {
    let with = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/with");
    let mut command = Command::new(with);
    command.env("PROFILE", "api").arg("--").arg(std::env::current_exe()?).arg(INSIDE);
    Ok(command.status().context("starting a cluster")?.success())
}

fn measure() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await?;
        let began = Instant::now();
        fill(&client).await?;
        println!(
            "{SERVICES} Services, {} endpoints, {PODS} Pods written in {:.0?}",
            SERVICES * ENDPOINTS_EACH,
            began.elapsed()
        );
        let [xds, http, admin] = [free_address()?, free_address()?, free_address()?];
        let args: Vec<String> = [("xds", xds), ("http", http), ("admin", admin)]
            .iter()
            .map(|(name, address)| format!("--{name}-address={address}"))
            .chain(["--source=kubernetes".to_owned()])
            .collect();
        let log = std::env::temp_dir().join(format!("bench-cluster-{}.log", std::process::id()));
        let began = Instant::now();
        let mut controller =
            Leashed::start("heddle-controller", &sibling("heddle-controller")?, &args, &log)?;
        while Http::new(http).get("localhost", "/readyz").await.map_or(true, |a| a.status != 200) {
            controller.check()?;
            ensure!(began.elapsed() < Duration::from_secs(120), "{}", controller.log_end());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let synced = began.elapsed();
        let (mut floor, mut ours) = writes(&client, xds).await?;
        let memory = controller.resident()? >> 20;
        controller.stop()?;
        std::fs::remove_file(log)?;
        let mut good = true;
        let mut line = |what: &str, value: String, bar: String, met: bool| {
            good &= met;
            println!("{what:<44} {value:>12}   bar {bar:<10} {}", if met { "" } else { "MISSED" });
        };
        line(
            "everything read, from start",
            format!("{synced:.1?}"),
            format!("{SYNC:?}"),
            synced <= SYNC,
        );
        line("resident memory", format!("{memory} MB"), format!("{MEMORY} MB"), memory <= MEMORY);
        for (percent, bar) in [(50, WRITE.0), (99, WRITE.1)] {
            let (floor, ours) = (percentile(&mut floor, percent), percentile(&mut ours, percent));
            println!("{:<44} {floor:>12.1?}", format!("write → bare watch, p{percent}"));
            let what = format!("write → bytes at a proxy, p{percent}");
            line(&what, format!("{ours:.1?}"), format!("{bar:?}"), ours <= bar);
        }
        Ok(good)
    })
}

/// An API of this resource.
fn api(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    match plural {
        "customresourcedefinitions" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), NAMESPACE, &resource),
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn create_all(
    api: &Api<DynamicObject>,
    count: usize,
    make: impl Fn(usize) -> Value,
) -> Result<()> {
    let requests = (0..count).map(|index| create(api, make(index)));
    stream::iter(requests).buffer_unordered(AT_ONCE).try_collect().await
}

async fn fill(client: &Client) -> Result<()> {
    let crds = api(
        client,
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    );
    for definition in KINDS.iter().filter_map(crd::definition) {
        create(&crds, definition).await?;
    }
    let of = |kind: &str, name: String, more: Value| {
        let version = match kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            "Service" | "Pod" | "ServiceAccount" => "v1",
            _ => "networking.istio.io/v1",
        };
        let mut object = json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            match key.as_str() {
                "labels" => object["metadata"]["labels"] = value.clone(),
                _ => object[key] = value.clone(),
            }
        }
        object
    };
    // Pods need it, and no controller makes it here.
    let accounts = api(client, "", "v1", "ServiceAccount", "serviceaccounts");
    create(&accounts, of("ServiceAccount", "default".to_owned(), json!({}))).await?;
    create_all(&api(client, "", "v1", "Service", "services"), SERVICES, |i| {
        let spec = json!({
            "clusterIP": "None", "selector": {"app": format!("app-{i}")},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        });
        of("Service", format!("service-{i}"), json!({"spec": spec}))
    })
    .await?;
    let slices = api(client, "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices");
    create_all(&slices, SERVICES, |i| {
        let endpoints: Vec<Value> = (0..ENDPOINTS_EACH)
            .map(|e| {
                let n = i * ENDPOINTS_EACH + e;
                json!({"addresses": [format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)],
                       "conditions": {"ready": true},
                       "targetRef": {"kind": "Pod", "name": format!("pod-{}", n % PODS)}})
            })
            .collect();
        let labels = json!({"kubernetes.io/service-name": format!("service-{i}")});
        let more = json!({"labels": labels, "addressType": "IPv4", "endpoints": endpoints,
                          "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        of("EndpointSlice", format!("service-{i}-a"), more)
    })
    .await?;
    create_all(&api(client, "", "v1", "Pod", "pods"), PODS, |i| {
        let env: Vec<Value> = (0..10)
            .map(|n| json!({"name": format!("NAME_{n}"), "value": "x".repeat(40)}))
            .collect();
        let container = json!({"name": "app", "image": "app:1", "env": env,
                               "ports": [{"name": "http", "containerPort": 8080}]});
        let labels = json!({"app": format!("app-{}", i % SERVICES), "version": "v1"});
        let spec = json!({"containers": [container], "automountServiceAccountToken": false});
        of("Pod", format!("pod-{i}"), json!({"labels": labels, "spec": spec}))
    })
    .await?;
    let istio = |kind: &str, plural: &str| api(client, "networking.istio.io", "v1", kind, plural);
    let gateway = json!({"selector": {"app": "edge"}, "servers": [
        {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]});
    let rules = json!({"hosts": ["a.example.com"], "gateways": ["edge"],
                       "http": [{"route": [{"destination": {"host": "service-0"}}]}]});
    create(&istio("Gateway", "gateways"), of("Gateway", "edge".into(), json!({"spec": gateway})))
        .await?;
    let of_rules = of("VirtualService", "a".into(), json!({"spec": rules}));
    create(&istio("VirtualService", "virtualservices"), of_rules).await?;
    let policy = of("DestinationRule", "a".into(), json!({"spec": policy(1)}));
    create(&istio("DestinationRule", "destinationrules"), policy).await
}

fn policy(connections: usize) -> Value {
    json!({"host": "service-0",
           "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": connections}}}})
}

/// Write one object again and again: how long until a bare watch has it, and until a proxy has.
async fn writes(
    client: &Client,
    xds: std::net::SocketAddr,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let labels = Map::from_iter([("app".to_owned(), json!("edge"))]);
    let metadata = Map::from_iter([("LABELS".to_owned(), Value::Object(labels))]);
    let mut ask = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "router~10.0.0.1~edge.default~default.svc.cluster.local".to_owned(),
            metadata: Some(envoy_api::json::to_struct(&metadata)),
            ..Default::default()
        }),
        type_url: envoy_api::ResourceType::Cluster.type_url().to_owned(),
        ..Default::default()
    };
    let (requests, outgoing) = mpsc::channel(16);
    requests.send(ask.clone()).await?;
    ask.node = None;
    let channel = Channel::from_shared(format!("http://{xds}"))?.connect().await?;
    let mut proxy = AggregatedDiscoveryServiceClient::new(channel);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut responses = proxy.delta_aggregated_resources(outgoing).await?.into_inner();
    let first = responses.message().await?.context("the stream ended")?;
    ask.response_nonce = first.nonce;
    requests.send(ask.clone()).await?;

    let rules = api(client, "networking.istio.io", "v1", "DestinationRule", "destinationrules");
    let at = rules.get("a").await?.metadata.resource_version.context("a version")?;
    let mut watch = Box::pin(rules.watch(&WatchParams::default().timeout(200), &at).await?);
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for write in 0..WRITES {
        let patch = Patch::Merge(json!({"spec": policy(write + 2)}));
        rules.patch("a", &PatchParams::default(), &patch).await?;
        let accepted = Instant::now();
        let seen = async {
            // The status that the controller writes comes by here as well.
            while let Some(event) = watch.try_next().await? {
                if let WatchEvent::Modified(object) = event
                    && object.data["spec"] == policy(write + 2)
                {
                    return Ok(accepted.elapsed());
                }
            }
            bail!("the watch ended")
        };
        let sent = async {
            let response = responses.message().await?.context("the stream ended")?;
            Ok((accepted.elapsed(), response))
        };
        let both = async { tokio::try_join!(seen, sent) };
        let (seen, (sent, response)) =
            tokio::time::timeout(Duration::from_secs(10), both).await.context("no response")??;
        floor.push(seen);
        ours.push(sent);
        ask.response_nonce = response.nonce;
        requests.send(ask.clone()).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((floor, ours))
}
