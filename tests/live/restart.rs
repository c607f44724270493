//! Controllers that restart under traffic while nothing changes.
//!
//! In: a mesh that runs. Out: a proxy that was sent something, or that changed anything. By state of
//! the world a proxy cannot say what it holds, and is sent everything; it changes nothing either.
//!
//! **Invariant:** what was sent is counted on the wire, and by Envoy itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::mesh::{DRAIN, Mesh};
use crate::place::Form;

/// What a stream of a proxy that says what it holds may cost: HTTP/2 and gRPC around nothing. Unit: bytes.
const MOST: u64 = 1024;
/// Counters of Envoy that grow with whatever it takes over.
const TAKEN: [&str; 6] = [
    "cluster_manager.cluster_added",
    "cluster_manager.cluster_modified",
    "cluster_manager.cluster_removed",
    "listener_manager.listener_added",
    "listener_manager.listener_modified",
    "listener_manager.listener_removed",
];
/// Time after which nothing comes any more.
const QUIET: Duration = Duration::from_secs(1);

/// All ways to another controller, or to the same one started again.
pub(crate) async fn all(mesh: &mut Mesh) -> Result<()> {
    unchanged(mesh, "every connection is cut", async |mesh| {
        mesh.proxies.iter().for_each(|proxy| proxy.relay.cut());
        Ok(())
    })
    .await?;
    unchanged(mesh, "both controllers are stopped in turn", async |mesh| {
        for _ in 0..2 {
            mesh.replicas.stop(0);
            mesh.replicas.all_serve().await?;
        }
        Ok(())
    })
    .await?;
    unchanged(mesh, "both controllers are killed", async |mesh| {
        mesh.replicas.kill(0)?;
        mesh.replicas.kill(0)?;
        mesh.replicas.all_serve().await
    })
    .await?;
    spread(mesh).await
}

/// After this every proxy has another stream, on which nothing was sent.
async fn unchanged(
    mesh: &mut Mesh,
    what: &str,
    happens: impl AsyncFnOnce(&mut Mesh) -> Result<()>,
) -> Result<()> {
    mesh.settle().await?;
    tokio::time::sleep(QUIET).await;
    let before = look(mesh).await?;
    happens(mesh).await?;
    mesh.settle().await.with_context(|| what.to_owned())?;
    tokio::time::sleep(QUIET).await;
    let streams = mesh.settle().await?;
    mesh.all_warm().await.with_context(|| what.to_owned())?;
    let after = look(mesh).await?;
    let mut most = BTreeMap::new();
    for (number, proxy) in mesh.proxies.iter().enumerate() {
        let ((bytes, connections, taken), (later, more, took)) = (&before[number], &after[number]);
        let form = proxy.form;
        let each = (later - bytes).checked_div(more - connections);
        let each = each.with_context(|| format!("{what}: {} stayed", proxy.node))?;
        let so_far = most.entry(form).or_default();
        *so_far = each.max(*so_far);
        let who = format!("{what}: {} ({form:?})", proxy.node);
        if form != Form::Whole {
            ensure!(each <= MOST, "{who} was sent {each} bytes for each stream");
            ensure!(streams[number].sent == 0, "{who} was sent {:#}", streams[number].page);
        }
        ensure!(taken == took, "{who} took over something: {TAKEN:?} {taken:?}, then {took:?}");
    }
    eprintln!("{what}: at most so many bytes for a stream: {most:?}");
    Ok(())
}

/// Bytes sent, connections made, and what each Envoy has taken over.
async fn look(mesh: &Mesh) -> Result<Vec<(u64, u64, Vec<u64>)>> {
    let mut seen = Vec::new();
    for proxy in &mesh.proxies {
        let mut taken = Vec::new();
        for name in TAKEN {
            taken.push(proxy.envoy.stat(name).await?);
        }
        let carried = proxy.relay.carried();
        seen.push((carried.bytes, carried.connections, taken));
    }
    Ok(seen)
}

/// The proxies of a controller that ends come to the other one by and by.
async fn spread(mesh: &mut Mesh) -> Result<()> {
    // All on one of them: the other is not started again before this looks.
    mesh.replicas.stop(1);
    mesh.proxies.iter().for_each(|proxy| proxy.relay.cut());
    while mesh.proxies.iter().any(|proxy| proxy.relay.carried().open == 0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mesh.replicas.all_serve().await?;
    mesh.settle().await?;
    let began = Instant::now();
    mesh.replicas.stop(0);
    mesh.settle().await?;
    let came = mesh.proxies.iter().filter_map(|p| Some((p.relay.carried().last? - began, p.form)));
    let came: BTreeSet<(Duration, Form)> = came.collect();
    eprintln!("a controller that ends in {DRAIN:?} is left after {came:.1?}");
    let (first, last) = came.first().zip(came.last()).context("no proxies")?;
    ensure!(last.0 - first.0 > DRAIN / 20, "all came at once: {came:?}");
    Ok(())
}
