//! The second act: two workloads that speak mutual TLS, each beside an agent and its Envoy.
//!
//! In: the YAML of `manifests/samples/sidecars`, binaries. Out: who the application hears from, and
//! that nobody is served without a certificate.
//!
//! **Invariant:** what is shown was heard by the application or counted by Envoy.

use anyhow::{Context as _, Result, ensure};
use house::agents::{Agent, Binaries, Pair, Standalone, Workload};
use house::backend::Backend;
use house::client::Client;
use serde_json::Value;
use std::time::Instant;

const REQUESTS: usize = 1000;

/// Play it.
pub(crate) async fn act(binaries: Binaries) -> Result<()> {
    println!("\nSecond act: two sidecars without a cluster, mutual TLS, nobody else is served\n");
    let pair = Pair::new()?;
    let house = Standalone::new(binaries, &pair.mesh()?)?;
    let controller = house.controller().await?;
    let application = Backend::start(pair.application, "catalog").await?;
    println!("  heddle-controller {} (xDS and certificates, mutual TLS)", house.secure);
    let server = started(&house, Pair::CATALOG).await?;
    let client = started(&house, Pair::CLIENT).await?;

    let mut caller = Client::new(pair.entry);
    let answer = caller.get(Pair::HOST, "/").await?;
    let heard: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    println!("\n  curl -H 'Host: {}' http://{}/", Pair::HOST, pair.entry);
    println!("    {}; the application hears in x-forwarded-client-cert:", answer.status);
    let proof = heard["client"].as_str().context("the application hears of nobody")?;
    for (key, who) in [("By", Pair::CATALOG.name), ("URI", Pair::CLIENT.name)] {
        let part = proof.split(';').find(|part| part.starts_with(&format!("{key}=")));
        let part = part.with_context(|| format!("no {key} in {proof}"))?;
        ensure!(part.ends_with(&format!("/sa/{who}")), "{part} is not {who}");
        println!("      {part}");
    }
    let plain = Client::new(pair.server).get(Pair::HOST, "/").await;
    ensure!(plain.is_err(), "somebody without a certificate is served: {plain:?}");
    println!(
        "  curl -H 'Host: {}' http://{}/\n    refused: no certificate",
        Pair::HOST,
        pair.server
    );

    let mut failed = 0;
    for _ in 0..REQUESTS {
        failed += usize::from(!caller.get(Pair::HOST, "/").await?.status.is_success());
    }
    let listener = pair.server.to_string().replace(':', "_");
    let handshakes = server.stat(&format!("listener.{listener}.ssl.handshake")).await?;
    println!("\n{REQUESTS} requests over mutual TLS, {failed} failed, {handshakes} handshakes");
    ensure!(failed == 0 && handshakes > 0, "that is not how it should be");
    drop((client, server, application));
    controller.stop()
}

async fn started(house: &Standalone, workload: Workload<'_>) -> Result<Agent> {
    let began = Instant::now();
    let mut agent = house.agent(workload, Pair::SETTINGS)?;
    agent.ready().await?;
    let Workload { name, address, .. } = workload;
    println!("  heddle-agent {name:<8} {address}, ready after {:.0?}", began.elapsed());
    Ok(agent)
}
