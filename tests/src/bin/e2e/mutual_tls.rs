//! Mutual TLS: that it is used, by whom, and that nobody else reads or gets in.
//!
//! **Invariant:** what is on the wire is read from the wire; no proxy is asked whether it is right.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;

use crate::cluster::{Cluster, until};
use crate::injection::{HOST, MESHED, client, pod_of, server};
use crate::inside::Inside;
use crate::packets::Packets;

/// A counter of a proxy, summed over the names that a test takes.
async fn counter(cluster: &Cluster, pod: &str, takes: impl Fn(&str) -> bool) -> Result<u64> {
    counter_in(cluster, MESHED, pod, takes).await
}

pub(crate) async fn counter_in(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    takes: impl Fn(&str) -> bool,
) -> Result<u64> {
    let forward = cluster.forward(namespace, &format!("pod/{pod}"), 15000).await?;
    let page = forward.page("/stats?format=json&usedonly").await?;
    let all = page["stats"].as_array().context("counters")?.iter();
    let taken = all.filter(|stat| stat["name"].as_str().is_some_and(&takes));
    Ok(taken.filter_map(|stat| stat["value"].as_u64()).sum())
}

pub(crate) async fn given_two_sidecars_then_every_request_is_mutual_tls_and_each_knows_the_other(
    cluster: &Cluster,
) -> Result<()> {
    let (inside, address) = (client(cluster)?, server(cluster)?);
    let traffic = inside.traffic(address, HOST)?;
    sleep(Duration::from_secs(2)).await;
    let sent = traffic.stop()?.good()?;
    // Each knows the other by its certificate.
    let (status, answer) = inside.get(cluster, address, HOST, "/")?;
    let said = answer["client"].as_str().unwrap_or_default();
    for part in [
        "By=spiffe://cluster.local/ns/meshed/sa/server",
        "URI=spiffe://cluster.local/ns/meshed/sa/client",
    ] {
        ensure!(status == 200 && said.contains(part), "{part}: {answer}");
    }
    // Both sides count as many handshakes as connections, and some.
    let pod = pod_of(cluster, MESHED, "app=client")?;
    let out = format!("cluster.outbound|80||{HOST}.");
    let count =
        async |what: &str| counter(cluster, &pod, |name| name == format!("{out}{what}")).await;
    let (handshakes, connections) =
        (count("ssl.handshake").await?, count("upstream_cx_total").await?);
    let failed = count("upstream_cx_connect_fail").await?;
    ensure!(
        handshakes > 0 && handshakes + failed == connections,
        "{handshakes} {connections} {failed}"
    );
    let mut inbound = 0;
    for version in ["v1", "v2"] {
        let pod = pod_of(cluster, MESHED, &format!("app=server,version={version}"))?;
        let encrypted = |name: &str| {
            name.starts_with("listener.")
                && name.contains("15006")
                && name.ends_with(".ssl.handshake")
        };
        let all = |name: &str| {
            name.starts_with("listener.")
                && name.contains("15006")
                && name.ends_with(".downstream_cx_total")
                && !name.contains(".worker_")
        };
        let (encrypted, all) =
            (counter(cluster, &pod, encrypted).await?, counter(cluster, &pod, all).await?);
        ensure!(encrypted == all, "{version}: {encrypted} handshakes of {all} connections");
        inbound += encrypted;
    }
    ensure!(inbound > 0, "nobody came in");
    println!(
        "        {sent} requests, {handshakes} handshakes out and {inbound} in, no connection without"
    );
    Ok(())
}

/// A pod of another namespace, without sidecar.
fn stranger(cluster: &Cluster) -> Result<Inside> {
    Inside::of(cluster, "default", &pod_of(cluster, "default", "app=reviews")?)
}

pub(crate) async fn given_requests_of_the_mesh_then_who_reads_packets_of_a_pod_reads_none_of_them(
    cluster: &Cluster,
) -> Result<()> {
    const MESH: &str = "said-between-sidecars";
    const OPEN: &str = "said-by-a-stranger";
    const REQUESTS: usize = 20;
    let (inside, outside, address) = (client(cluster)?, stranger(cluster)?, server(cluster)?);
    let mut readers = vec![Packets::of(&inside, &[MESH, OPEN])?];
    for version in ["app=server,version=v1", "app=server,version=v2"] {
        let server = Inside::of(cluster, MESHED, &pod_of(cluster, MESHED, version)?)?;
        readers.push(Packets::of(&server, &[MESH, OPEN])?);
    }
    for (from, says) in [(&inside, MESH), (&outside, OPEN)] {
        for _ in 0..REQUESTS {
            let (status, answer) = from.get(cluster, address, HOST, &format!("/{says}"))?;
            let heard = answer["path"].as_str().unwrap_or_default();
            ensure!(status == 200 && heard.contains(says), "{status} {answer}");
        }
    }
    let seen = readers.into_iter().map(Packets::stop).collect::<Result<Vec<_>>>()?;
    ensure!(seen.iter().all(|seen| seen.holding(MESH) == 0), "plain text: {seen:?}");
    // Each of them reads what there is: many packets, and what is said in plain text.
    let busy = seen.iter().all(|seen| seen.total >= REQUESTS / 2);
    let open: usize = seen.iter().map(|seen| seen.holding(OPEN)).sum();
    ensure!(busy && open >= REQUESTS, "{open} of {REQUESTS} requests in plain text: {seen:?}");
    let total: usize = seen.iter().map(|seen| seen.total).sum();
    println!("        {total} packets hold no request of the mesh, {open} hold one of a stranger");
    Ok(())
}

pub(crate) async fn given_a_server_then_the_certificate_that_it_presents_is_that_of_its_account(
    cluster: &Cluster,
) -> Result<()> {
    let roots = cluster.get(&["configmap", "istio-ca-root-cert", "-n", MESHED])?;
    let roots = roots["data"]["root-cert.pem"].as_str().context("the roots")?.to_owned();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("roots.pem");
    std::fs::write(&file, roots)?;
    let file = file.display().to_string();
    for (label, account) in [("app=server,version=v1", "server"), ("app=client", "client")] {
        let pod = cluster.get(&["pod", &pod_of(cluster, MESHED, label)?, "-n", MESHED])?;
        let port = if account == "server" { 8080 } else { 8081 };
        let address = pod["status"]["podIP"].as_str().context("an address")?;
        let to = format!("{address}:{port}");
        // Whoever asks is shown it, before he must show his own.
        let ask = ["s_client", "-connect", &to, "-alpn", "istio", "-CAfile", &file];
        let shown = cluster.run("timeout", &[&["5", "openssl"], &ask[..]].concat(), "");
        let shown = shown.unwrap_or_else(|error| error.to_string());
        ensure!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
        let text = cluster.run("openssl", &["x509", "-noout", "-text"], &shown)?;
        let id = format!("URI:spiffe://cluster.local/ns/{MESHED}/sa/{account}");
        for part in [id.as_str(), "prime256v1", "CA:FALSE"] {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        ensure!(text.matches("URI:").count() == 1 && !text.contains("DNS:"), "{text}");
    }
    Ok(())
}

pub(crate) async fn given_a_pod_then_its_app_gets_no_key(cluster: &Cluster) -> Result<()> {
    let inside = client(cluster)?;
    // Neither the agent's memory nor its token is among the files of the application.
    let files = inside.mounts()?;
    ensure!(files.contains("/etc/hosts"), "{files}");
    for ours in ["heddle", "tokens", "sds.sock"] {
        ensure!(!files.contains(ours), "{ours} is mounted: {files}");
    }
    // Nor is a socket that needs no file.
    let sockets = inside.sockets()?;
    ensure!(sockets.contains("sds.sock"), "no agent listens: {sockets}");
    let nameless = sockets.lines().filter(|line| line.contains(" @")).collect::<Vec<_>>();
    ensure!(nameless.is_empty(), "{nameless:?}");
    // Pages that it may read say nothing of keys.
    let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
    for path in ["/config_dump?include_eds", "/certs"] {
        let (status, page) = inside.get(cluster, admin, "localhost", path)?;
        let page = page.to_string();
        ensure!(status == 200 && page.len() > 100, "{path}: {status} {page}");
        ensure!(!page.contains("PRIVATE KEY"), "{path} holds a key");
    }
    Ok(())
}

/// Wait until `heddle status --mtls` says this of the stranger as a client of the server.
async fn counted(cluster: &Cluster, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let name = format!("default/{}", pod_of(cluster, "default", "app=reviews")?);
    until(&format!("the stranger to be counted as {what}"), async || {
        let said =
            cluster.heddle(&["status", "--mtls", "--kubernetes", "-n", MESHED, "-o", "json"]);
        let all: Value = serde_json::from_str(&said.unwrap_or_default()).unwrap_or_default();
        let mut workloads = all.as_array().into_iter().flatten();
        let server = workloads.find(|workload| workload["name"] == "server");
        let clients = server.and_then(|server| server["without"].as_array()).into_iter().flatten();
        clients.into_iter().any(|client| client["name"] == name.as_str() && holds(client))
    })
    .await?;
    let table = cluster.heddle(&["status", "--mtls", "--kubernetes"])?;
    // A client a line, of which the first stands beside the workload.
    ensure!(table.contains(" meshed/server ") && table.contains(&name), "{table}");
    Ok(())
}

pub(crate) async fn given_strict_mutual_tls_then_an_unmeshed_pod_is_refused_and_permissive_serves_it(
    cluster: &Cluster,
) -> Result<()> {
    let stranger = stranger(cluster)?;
    let address = server(cluster)?;
    let served = || stranger.get(cluster, address, HOST, "/");
    let (status, answer) = served()?;
    ensure!(status == 200 && answer["client"].is_null(), "{status} {answer}");
    counted(cluster, "in plain text", |client| client["plainText"].as_u64() > Some(0)).await?;
    let traffic = client(cluster)?.traffic(address, HOST)?;
    let strict = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: \
                  {name: default}, spec: {mtls: {mode: STRICT}}}";
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], strict)?;
    until("the stranger to be refused", async || served().is_err()).await?;
    // Probes are asked by way of the agent: nobody is restarted, nobody leaves.
    sleep(Duration::from_secs(6)).await;
    ensure!(served().is_err(), "a stranger was served");
    counted(cluster, "refused", |client| client["refused"].as_u64() > Some(0)).await?;
    let pods = cluster.get(&["pods", "-n", MESHED, "-l", "app=server"])?;
    for pod in pods["items"].as_array().context("pods")? {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["ready"] == true && status["restartCount"] == 0, "{status}");
    }
    cluster.kubectl(&["delete", "peerauthentication", "default", "-n", MESHED])?;
    until("the stranger to be served again", async || served().is_ok_and(|(s, _)| s == 200))
        .await?;
    let counts = traffic.stop()?;
    println!("        {} requests of the client, 0 failed", counts.good()?);
    Ok(())
}
