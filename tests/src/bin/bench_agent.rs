//! Part of `make bench`: what an agent costs, and how long its workload waits for it.
//!
//! In: `ENVOY_BIN`, the binaries beside this one, built for release. Out: a table; the bars stand
//! beside and are not asserted: on a machine with other work they say little.
//!
//! **Invariant:** measures from outside: pages of the agent, and what the kernel counts.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use house::agents::{Agent, Binaries, Pair, Standalone};
use house::backend::Backend;
use house::client::Client;
use house::mesh::Envoy;
use house::process::sibling;
use house::statistics::percentile;
use identity::client::{Credential, obtain};
use identity::{IdentityFolder, JoinTokens, SpiffeId, TrustBundle};
use tokio::task::JoinSet;

const STARTS: usize = 11;
/// Workloads that ask for their first certificate at once.
const AT_ONCE: usize = 1000;
const REQUESTS: usize = 2000;

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("bench_agent: this is a debug build; use `make bench`");
    }
    tokio::runtime::Runtime::new()?.block_on(bench())
}

async fn bench() -> Result<()> {
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make bench`")?;
    let (controller, agent) = (sibling("heddle-controller")?, sibling("heddle-agent")?);
    let pair = Pair::new()?;
    let house = Standalone::new(Binaries { controller, agent, envoy }, &pair.mesh()?)?;
    let controller = house.controller().await?;
    let _application = Backend::start(pair.application, "app").await?;
    println!("{:<44} {:>12} {:>12}", "what", "measured", "bar");
    let line = |what: &str, measured: String, bar: &str| {
        println!("{what:<44} {measured:>12} {bar:>12}");
    };
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);

    let (mut certified, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (agent, times) = started(&house).await?;
        certified.push(times[0]);
        ready.push(times[1]);
        agent.signal("TERM")?;
        agent.ended().await?;
    }
    let certified = milliseconds(percentile(&mut certified, 50));
    line("agent: start to certificate, p50", certified, "<= 100 ms");
    line("agent: start to ready, p50", milliseconds(percentile(&mut ready, 50)), "<= 1500 ms");

    let mut server = house.agent(Pair::CATALOG, Pair::SETTINGS)?;
    let (client, _) = started(&house).await?;
    server.ready().await?;
    let mut requests = Client::new(pair.entry);
    for _ in 0..REQUESTS {
        let answer = requests.get(Pair::HOST, "/").await?;
        ensure!(answer.status.is_success(), "{answer:?}");
    }
    let resident = client.process().resident()?;
    let mebibytes = resident as f64 / f64::from(1 << 20);
    line("agent: resident memory after requests", format!("{mebibytes:.1} MiB"), "<= 15 MiB");
    // A page of all metrics passes through it.
    client.page().await?;
    let resident = client.process().resident()? as f64 / f64::from(1 << 20);
    line("agent: resident memory after a scrape", format!("{resident:.1} MiB"), "<= 15 MiB");

    let took = crowd(&house).await?;
    line(&format!("{AT_ONCE} first certificates at once"), milliseconds(took), "<= 5000 ms");
    drop((client, server));
    controller.stop()
}

/// Start the client's agent. Out: it, and when it had a certificate and was ready.
async fn started(house: &Standalone) -> Result<(Agent, [Duration; 2])> {
    let mut agent = house.agent(Pair::CLIENT, Pair::SETTINGS)?;
    let began = agent.began;
    let certified = loop {
        let text = agent.readiness().await.map(|(_, text)| text);
        if text.is_some_and(|text| !text.contains("certificate")) {
            break began.elapsed();
        }
        ensure!(began.elapsed() < Duration::from_secs(20), "{}", agent.process().log_end());
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    agent.ready().await?;
    Ok((agent, [certified, began.elapsed()]))
}

/// As many workloads as start when a cluster does: each with its token, key and connection.
async fn crowd(house: &Standalone) -> Result<Duration> {
    let tokens =
        JoinTokens::new(&IdentityFolder::open(&house.path("identity"))?, "cluster.local".parse()?);
    let roots = TrustBundle::from_pem(&std::fs::read(house.path("roots.pem"))?);
    let roots = Arc::new(roots.map_err(anyhow::Error::msg)?);
    let mut asked = Vec::new();
    for n in 0..AT_ONCE {
        let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/w-{n}").parse()?;
        asked.push(tokens.create(&id, Duration::from_secs(600), SystemTime::now())?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for token in asked {
        let (roots, address) = (Arc::clone(&roots), house.secure.to_string());
        tasks.spawn(async move {
            obtain(&address, &roots, Credential::Token(&token), None).await.map(|_| ())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.context("a workload without a certificate")?;
    }
    Ok(began.elapsed())
}
