//! `make demo`: a canary split through a real Envoy, while its rule is edited on disk; then two
//! sidecars that prove who they are to each other.
//!
//! In: the YAML of `manifests/samples/standalone`, `ENVOY_BIN`, the binaries beside this one. Out: a
//! table of observed shares, what the controller says of the proxy, and whether any request failed.
//!
//! **Invariant:** every process ends with this one; a request that fails or a share that chance
//! does not explain gives a non-zero exit code.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

mod sidecars;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use house::agents::Binaries;
use house::client::Client;
use house::mesh::{Controller, Envoy, GATEWAY_NODE, free_address_of, replace};
use house::process::{Leashed, sibling};
use house::statistics::is_plausible;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

const HOST: &str = "reviews.example.com";
const CONNECTIONS: usize = 4;

/// Length of each step of the split.
const STEP: Duration = Duration::from_millis(3500);

/// Envoy's workers take up a change this long after the ACK at the latest.
const SWAP: Duration = Duration::from_millis(250);

/// Shares of v1 and v2, one step each. The first is what the files say.
const STEPS: [(u64, u64); 3] = [(90, 10), (50, 50), (0, 100)];

/// What the clients counted.
#[derive(Debug, Default)]
struct Tally {
    v1: AtomicU64,
    v2: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    first_failure: Mutex<Option<String>>,
}

#[derive(Clone, Copy)]
struct Counts {
    v1: u64,
    v2: u64,
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Dropping the demo stops what it started.
        tokio::select! {
            result = demo() => result,
            _ = terminate.recv() => bail!("terminated"),
            _ = interrupt.recv() => bail!("interrupted"),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make demo`")?;
    let work = tempfile::Builder::new().prefix("heddle-demo-").tempdir()?;
    let mesh = work.path().join("mesh");
    let gateway = free_address_of(Ipv4Addr::LOCALHOST)?;
    let backends = backend_port()?;
    copy_samples(&mesh, gateway.port(), backends)?;

    println!("Heddle demo: a canary, from files to a stock Envoy\n");
    let mut children = Vec::new();
    for (name, address) in
        [("v1", Ipv4Addr::new(127, 0, 0, 2)), ("v2", Ipv4Addr::new(127, 0, 0, 3))]
    {
        let address = SocketAddr::from((address, backends));
        let log = work.path().join(format!("{name}.log"));
        let args = [address.to_string(), name.to_owned()];
        children.push(Leashed::start(name, &sibling("backend")?, &args, &log)?);
        println!("  backend {name}        {address}");
    }
    let binary = sibling("heddle-controller")?;
    let log = work.path().join("controller.log");
    let mut controller = Controller::start(&binary, &mesh, &log).await?;
    println!("  heddle-controller {} (xDS), {} (admin)", controller.xds, controller.admin);
    let mut proxy = Envoy::start(&envoy, controller.xds, work.path()).await?;
    let mut state = controller.synced(GATEWAY_NODE, 0).await?;
    println!("  envoy gateway     {gateway}, synced\n");
    first_answer(gateway, &mut proxy).await?;

    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        clients.spawn(send(gateway, Arc::clone(&tally)));
    }
    println!("  {CONNECTIONS} connections send requests to {HOST} without pause.\n");
    println!("  time      rule   requests      v1      v2   ");
    let began = Instant::now();
    let file = mesh.join("virtual-service.yaml");
    let mut written = STEPS[0];
    for step in STEPS {
        if step != written {
            edit(&file, written, step)?;
            let edited = Instant::now();
            state = controller.synced(GATEWAY_NODE, state.sent).await?;
            let took = edited.elapsed();
            println!("            {} saved, ACKed by Envoy after {took:.1?}", file_name(&file));
            written = step;
            tokio::time::sleep(SWAP).await;
        }
        observe(&tally, began, step).await?;
        controller.check()?;
        proxy.check()?;
    }
    tally.stop.store(true, Ordering::Relaxed);
    while let Some(joined) = clients.join_next().await {
        joined?;
    }
    report(&controller, &mesh).await?;
    drop(proxy);
    controller.stop()?;
    drop(children);
    let Counts { v1, v2 } = tally.counts();
    let failed = tally.failed.load(Ordering::Relaxed);
    println!("\n{} requests, {failed} failed", grouped(v1 + v2 + failed));
    let first = tally.first_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(first) = first {
        bail!("the first failure: {first}");
    }
    let (controller, agent) = (binary, sibling("heddle-agent")?);
    sidecars::act(Binaries { controller, agent, envoy }).await
}

/// The port of the samples if both backends can have it, else another.
fn backend_port() -> Result<u16> {
    let free = |port: u16| {
        [2, 3]
            .iter()
            .all(|n| std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, *n), port)).is_ok())
    };
    if free(9080) {
        return Ok(9080);
    }
    for _ in 0..100 {
        let port = free_address_of(Ipv4Addr::new(127, 0, 0, 2))?.port();
        if free(port) {
            return Ok(port);
        }
    }
    bail!("no port is free on 127.0.0.2 and 127.0.0.3")
}

fn copy_samples(to: &Path, gateway: u16, backends: u16) -> Result<()> {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples/standalone");
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(&samples).context("reading the samples")? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let text =
            text.replace("8080", &gateway.to_string()).replace("9080", &backends.to_string());
        std::fs::write(to.join(file_name(&path)), text)?;
    }
    Ok(())
}

fn edit(file: &PathBuf, from: (u64, u64), to: (u64, u64)) -> Result<()> {
    let mut text = std::fs::read_to_string(file)?;
    for (subset, from, to) in [("v1", from.0, to.0), ("v2", from.1, to.1)] {
        let before = format!("subset: {subset}\n      weight: {from}\n");
        let after = format!("subset: {subset}\n      weight: {to}\n");
        if !text.contains(&before) {
            bail!("{} does not say what it should: {text}", file.display());
        }
        text = text.replace(&before, &after);
    }
    replace(file, &text)
}

/// Wait for the listener: a synced proxy may take a moment to open it.
async fn first_answer(gateway: SocketAddr, proxy: &mut Envoy) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Client::new(gateway).get(HOST, "/").await {
            Ok(answer) if answer.status == 200 => return Ok(()),
            other if Instant::now() > deadline => {
                bail!("the gateway does not serve {HOST}: {other:?}\n{}", proxy.process().log_end())
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        proxy.check()?;
    }
}

async fn send(gateway: SocketAddr, tally: Arc<Tally>) {
    let mut client = Client::new(gateway);
    while !tally.stop.load(Ordering::Relaxed) {
        let answer = client.get(HOST, "/reviews/1").await;
        match &answer {
            Ok(answer) if answer.status == 200 && answer.backend.as_deref() == Some("v1") => {
                tally.v1.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) if answer.status == 200 && answer.backend.as_deref() == Some("v2") => {
                tally.v2.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                let mut first = tally.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| format!("{answer:?}"));
            }
        }
    }
}

/// Print the shares of a step as they come, and judge them at its end.
async fn observe(tally: &Tally, began: Instant, step: (u64, u64)) -> Result<()> {
    const LINES: u32 = 5;
    let before = tally.counts();
    for _ in 0..LINES {
        tokio::time::sleep(STEP / LINES).await;
        let now = tally.counts();
        let (v1, v2) = (now.v1 - before.v1, now.v2 - before.v2);
        let percent = |n: u64| 100.0 * n as f64 / (v1 + v2).max(1) as f64;
        let bar = "#".repeat((percent(v2) / 5.0).round() as usize);
        println!(
            "  {:5.1} s  {:>6}  {:>8}  {:5.1} %  {:5.1} %  {bar:.<20}",
            began.elapsed().as_secs_f64(),
            format!("{}/{}", step.0, step.1),
            grouped(v1 + v2),
            percent(v1),
            percent(v2),
        );
    }
    let now = tally.counts();
    let (v1, v2) = (now.v1 - before.v1, now.v2 - before.v2);
    if v1 + v2 < 100 {
        bail!("only {} requests were answered in {STEP:?}", v1 + v2);
    }
    if !is_plausible(v2, v1 + v2, step.1 as f64 / 100.0) {
        bail!("{v2} of {} requests went to v2, which is not {} %", v1 + v2, step.1);
    }
    Ok(())
}

/// What the admin endpoint says about the proxy.
async fn report(controller: &Controller, directory: &Path) -> Result<()> {
    let mut admin = Client::new(controller.admin);
    let state = controller.sync_state(&mut admin, GATEWAY_NODE).await?;
    let state = state.context("the proxy is not in /debug/syncz")?;
    println!("\n  The controller about {GATEWAY_NODE}:");
    println!("  {}", if state.synced { "synced" } else { "NOT SYNCED" });
    for (name, status) in state.page["types"].as_object().into_iter().flatten() {
        println!(
            "    {name:<5} {:<9} version {}  sent {}, ACKed {}, rejected {}",
            status["state"].as_str().unwrap_or_default(),
            status["version"].as_str().unwrap_or_default(),
            status["sent"],
            status["acked"],
            status["rejected"],
        );
    }
    let dump = admin.json(&format!("/debug/config_dump?proxyID={GATEWAY_NODE}")).await?;
    println!("  Its routes come from:");
    let origins = routes(&dump);
    for (host, from) in &origins {
        println!("    {host}");
        for origin in from {
            println!("      {}", origin.replace(&format!("{}/", directory.display()), ""));
        }
    }
    if origins.is_empty() {
        bail!("the dump names no origins: {dump}");
    }
    if !state.synced || state.rejected > 0 {
        bail!("the proxy should be synced without rejections: {:#}", state.page);
    }
    Ok(())
}

/// Every virtual host of a dump that has routes, and its origins.
fn routes(dump: &Value) -> Vec<(String, Vec<String>)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = Vec::new();
    for config in list(&dump["configs"]).iter().flat_map(|c| list(&c["dynamic_route_configs"])) {
        for host in list(&config["route_config"]["virtual_hosts"]) {
            let domain = host["domains"][0].as_str().unwrap_or_default().to_owned();
            if !list(&host["routes"]).is_empty() {
                let origins = list(&config["virtual_host_origins"][&domain]);
                let origins = origins.iter().filter_map(Value::as_str).map(str::to_owned);
                out.push((domain, origins.collect()));
            }
        }
    }
    out
}

// === impl Tally ===

impl Tally {
    fn counts(&self) -> Counts {
        Counts { v1: self.v1.load(Ordering::Relaxed), v2: self.v2.load(Ordering::Relaxed) }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A number with a comma before every third digit.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
