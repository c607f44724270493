//! Requests within the mesh while something happens to who sends, who answers, who configures.
//!
//! **Invariant:** a case leaves namespace `meshed` as it found it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use house::client::Client;
use house::load::Counts;
use tokio::time::sleep;

use crate::cluster::{Cluster, SYSTEM, until};
use crate::injection::{HOST, MESHED, client, pod, server};

/// How long the mesh must do without a controller.
const AWAY: Duration = Duration::from_secs(60);
/// How long a pod that asks for a sidecar waits meanwhile.
const ASKS: Duration = Duration::from_secs(15);

pub(crate) async fn given_traffic_in_the_mesh_when_the_server_is_rolled_then_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = client(cluster)?.traffic(server(cluster)?, HOST)?;
    cluster.kubectl(&["rollout", "restart", "deployment", "server-v1", "-n", MESHED])?;
    cluster.rolled_out(MESHED, "server-v1")?;
    // Pods that are going still answer for a while.
    sleep(Duration::from_secs(5)).await;
    let counts = traffic.stop()?;
    println!("        {} requests, 0 failed", counts.good()?);
    Ok(())
}

/// What a caller says until it ends: its counts, in the last line.
struct Callers {
    logs: Vec<Child>,
}

// === impl Callers ===

impl Callers {
    const LABEL: &str = "app=caller";

    /// Listen to those that there are, and to none twice.
    fn listen(cluster: &Cluster) -> Result<Self> {
        let mut logs = Vec::new();
        for pod in cluster.names(MESHED, Self::LABEL)? {
            let log = Command::new("kubectl")
                .args(["logs", "-f", "-n", MESHED, &pod, "-c", "caller"])
                .stdout(Stdio::piped())
                .spawn()?;
            logs.push(log);
        }
        ensure!(!logs.is_empty(), "there are no callers");
        Ok(Self { logs })
    }

    /// How many requests they sent, once they have ended; fails if one failed.
    fn ended(mut self) -> Result<u64> {
        let mut total = 0;
        for log in std::mem::take(&mut self.logs) {
            let said = log.wait_with_output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let last = said.lines().last().context("a caller says nothing")?;
            let counts: Counts = serde_json::from_str(last).with_context(|| said.clone())?;
            let count = counts.good()?;
            ensure!(count > 0, "a caller sent nothing: {said}");
            total += count;
        }
        Ok(total)
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for log in &mut self.logs {
            // It may have ended by itself.
            let _ = log.kill();
            let _ = log.wait();
        }
    }
}

pub(crate) async fn given_certificates_of_ten_seconds_when_they_are_renewed_and_clients_are_rolled_then_no_request_fails(
    cluster: &Cluster,
) -> Result<()> {
    const FILE: &str = "tests/cluster/short-lived.yaml";
    cluster.kubectl(&["apply", "-f", FILE])?;
    cluster.rolled_out(MESHED, "called")?;
    let callers = |replicas: &str| {
        cluster.kubectl(&["scale", "deployment", "caller", "-n", MESHED, replicas]).map(drop)
    };
    callers("--replicas=2")?;
    cluster.rolled_out(MESHED, "caller")?;
    let first = Callers::listen(cluster)?;
    sleep(Duration::from_secs(15)).await;
    for label in ["app=called", Callers::LABEL] {
        for pod in cluster.names(MESHED, label)? {
            let forward = cluster.forward(MESHED, &format!("pod/{pod}"), 15020).await?;
            let page = Client::new(forward.address).get("localhost", "/stats/prometheus").await?;
            let page = String::from_utf8_lossy(&page.body).into_owned();
            let value = |name: &str| -> Result<u64> {
                let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.and_then(|n| n.parse().ok()).with_context(|| format!("{name} of {pod}"))
            };
            let obtained = value("heddle_agent_certificates_obtained_total")?;
            ensure!(obtained >= 3, "{pod} has had {obtained} certificates");
            ensure!(value("heddle_agent_certificate_failures_total")? == 0, "{pod} failed");
        }
    }
    cluster.kubectl(&["rollout", "restart", "deployment", "caller", "-n", MESHED])?;
    cluster.rolled_out(MESHED, "caller")?;
    let steady = tokio::task::block_in_place(|| first.ended())?;
    // Those that came begin while others end, and end themselves now.
    let second = Callers::listen(cluster)?;
    callers("--replicas=0")?;
    let rolled = tokio::task::block_in_place(|| second.ended())?;
    println!(
        "        {steady} requests by callers that were rolled, {rolled} by the next, 0 failed"
    );
    cluster.kubectl(&["delete", "-f", FILE, "--wait=false"]).map(drop)
}

pub(crate) async fn given_traffic_in_the_mesh_when_the_controller_is_away_then_pods_that_ask_wait_and_others_do_not(
    cluster: &Cluster,
) -> Result<()> {
    let traffic = client(cluster)?.traffic(server(cluster)?, HOST)?;
    let edge = cluster.traffic()?;
    let replicas = |count: &str| {
        cluster.kubectl(&["scale", "deployment", "heddle", "-n", SYSTEM, count]).map(drop)
    };
    replicas("--replicas=0")?;
    until("no controller", async || {
        let label = ["-l", "app.kubernetes.io/component=controller"];
        let pods = cluster.get(&[&["pods", "-n", SYSTEM][..], &label].concat());
        pods.is_ok_and(|pods| pods["items"].as_array().is_some_and(Vec::is_empty))
    })
    .await?;
    let gone = Instant::now();
    // Who asks for nothing is not hindered.
    let began = Instant::now();
    cluster.run("kubectl", &["apply", "-f", "-"], &pod("unhindered", "", ""))?;
    let no = "labels: {sidecar.istio.io/inject: 'false'}";
    cluster.run("kubectl", &["apply", "-n", MESHED, "-f", "-"], &pod("unhindered", no, ""))?;
    ensure!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for namespace in ["default", MESHED] {
        let ready = ["wait", "--for=condition=Ready", "pod/unhindered", "--timeout=30s"];
        cluster.kubectl(&[&ready[..], &["-n", namespace]].concat())?;
        cluster.kubectl(&["delete", "pod", "unhindered", "-n", namespace, "--wait=false"])?;
    }
    // Who asks waits. Kubernetes tries again and again, with pauses as long as it has waited.
    sleep((AWAY - ASKS).saturating_sub(gone.elapsed())).await;
    cluster.kubectl(&["scale", "deployment", "server-v2", "-n", MESHED, "--replicas=2"])?;
    sleep(ASKS).await;
    let pods = cluster.get(&["pods", "-n", MESHED, "-l", "version=v2"])?;
    ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 1), "{pods:#}");
    let away = gone.elapsed();
    replicas("--replicas=2")?;
    cluster.rolled_out(SYSTEM, "heddle")?;
    let back = Instant::now();
    cluster.rolled_out(MESHED, "server-v2")?;
    println!("        the pod that waited was ready {:.1?} after the controller", back.elapsed());
    cluster.kubectl(&["scale", "deployment", "server-v2", "-n", MESHED, "--replicas=1"])?;
    let counts = traffic.stop()?;
    println!("        {} requests, 0 failed, {away:.0?} without controller", counts.good()?);
    edge.stop().await.map(drop)
}
