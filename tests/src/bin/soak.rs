//! `make soak`: what takes long, under load, by real proxies.
//!
//! In: `ENVOY_BIN`, the binaries beside this one; `SOAK_SECONDS` for each run (300 unless it is set);
//! words as arguments choose the runs whose names hold one of them. Out: figures while a run goes
//! on, a line per run, and at the end `N passed, N failed`.
//!
//! **Invariant:** a run fails if one request of it does.

#![allow(clippy::print_stdout, reason = "a tool")]

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use house::agents::{Agent, Binaries, Pair, Standalone};
use house::backend::Backend;
use house::load::Traffic;
use house::mesh::Envoy;
use house::process::sibling;

/// Under load for so long.
type Run = fn(Duration) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// The runs, in order.
const RUNS: &[(&str, Run)] =
    &[("certificates of a minute between two sidecars", |time| Box::pin(certificates(time)))];

/// Time between two lines of figures.
const LOOK: Duration = Duration::from_secs(30);

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seconds = std::env::var("SOAK_SECONDS").unwrap_or_else(|_| "300".to_owned());
    let seconds = seconds.parse().with_context(|| format!("SOAK_SECONDS={seconds:?}"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut passed, mut failed) = (0, 0);
    for (name, run) in RUNS {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        println!("{name}, {seconds} s");
        match runtime.block_on(run(Duration::from_secs(seconds))) {
            Ok(()) => passed += 1,
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}\n{error:#}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Call `look` from time to time, until the time is over.
async fn during(time: Duration, mut look: impl AsyncFnMut(Duration) -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        let left = time.saturating_sub(began.elapsed());
        tokio::time::sleep(left.min(LOOK)).await;
        look(began.elapsed()).await?;
        if began.elapsed() >= time {
            return Ok(());
        }
    }
}

/// Certificates are renewed at half of their time; connections end after ten requests, so that
/// each certificate is used for many handshakes.
async fn certificates(time: Duration) -> Result<()> {
    const LIFETIME: u64 = 60;
    let envoy = Envoy::binary().context("ENVOY_BIN names no Envoy binary; use `make soak`")?;
    let (controller, agent) = (sibling("heddle-controller")?, sibling("heddle-agent")?);
    let pair = Pair::new()?;
    let mesh = pair.mesh()? + Pair::SHORT_CONNECTIONS;
    let house = Standalone::new(Binaries { controller, agent, envoy }, &mesh)?;
    let mut controller = house.controller().await?;
    let _application = Backend::start(pair.application, "app").await?;
    let settings = format!("certificateLifetime: {LIFETIME}s\n{}", Pair::SETTINGS);
    let mut client = house.agent(Pair::CLIENT, &settings)?;
    let mut server = house.agent(Pair::CATALOG, &settings)?;
    client.ready().await?;
    server.ready().await?;
    let traffic = Traffic::start(pair.entry, Pair::HOST);
    let mut total = 0;
    let figures = async |agent: &Agent, name: &str| -> Result<String> {
        let obtained = agent.metric("heddle_agent_certificates_obtained_total").await?;
        let handshakes = agent.stat("ssl.handshake").await?;
        let resident = agent.process().resident()? as f64 / f64::from(1 << 20);
        Ok(format!("{name} {obtained} certificates, {handshakes} handshakes, {resident:.1} MiB"))
    };
    let seen = during(time, async |elapsed| {
        total += traffic.take().good()?;
        let (client, server) =
            (figures(&client, "client").await?, figures(&server, "server").await?);
        println!(
            "  {:>5.0} s  {total:>8} requests, 0 failed; {client}; {server}",
            elapsed.as_secs_f64()
        );
        Ok(())
    });
    seen.await?;
    traffic.stop().await?;
    // Half a minute each, and a first one; the last may be on its way.
    let least = time.as_secs() / (LIFETIME / 2);
    for agent in [&mut client, &mut server] {
        agent.ready().await?;
        let obtained = agent.metric("heddle_agent_certificates_obtained_total").await?;
        ensure!(obtained >= least, "{obtained} certificates, not {least}");
        let failures = agent.metric("heddle_agent_certificate_failures_total").await?;
        ensure!(failures == 0, "{failures} attempts to get a certificate failed");
        let handshakes = agent.stat("ssl.handshake").await?;
        ensure!(handshakes >= total / 10, "{handshakes} handshakes, {total} requests");
    }
    controller.check()
}
