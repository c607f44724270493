//! The cluster that the cases share, by its command line tools.
//!
//! **Invariant:** every wait is for a condition, with a deadline; every child ends with its guard.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use house::client::Client;
use house::load::Traffic;
use house::mesh::free_address;
use house::process::sibling;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::block_in_place;
use tokio::time::sleep;

/// Namespace that Heddle is installed into.
pub(crate) const SYSTEM: &str = "heddle-system";

/// The host that the gateway of `manifests/samples/canary` serves.
pub(crate) const EDGE: &str = "reviews.example.com";

/// Values that the chart gets here: images as they were made, and no load balancer, which nobody
/// would serve.
const VALUES: [&str; 4] = [
    "image.tag=test",
    "proxy.image.tag=test",
    "gateway.enabled=true",
    "gateway.service.type=ClusterIP",
];

/// The cluster.
pub(crate) struct Cluster {
    repository: PathBuf,
}

/// A port on loopback that leads to a port of a pod.
pub(crate) struct Forward {
    child: Child,
    pub(crate) address: SocketAddr,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(repository: PathBuf) -> Result<Self> {
        ensure!(std::env::var_os("KUBECONFIG").is_some(), "start it by tests/cluster/with");
        Ok(Self { repository: repository.canonicalize()? })
    }

    pub(crate) fn path(&self, of: &str) -> PathBuf {
        self.repository.join(of)
    }

    /// Run a program; its output, or an error with everything that it said.
    pub(crate) fn run(
        &self,
        program: impl AsRef<Path>,
        args: &[&str],
        input: &str,
    ) -> Result<String> {
        let program = program.as_ref();
        let shown = || format!("{} {}", program.display(), args.join(" "));
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.repository);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        block_in_place(|| {
            let mut child = command.spawn().with_context(shown)?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                bail!(
                    "{}: {}\n{}{said}",
                    shown(),
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Ok(said)
        })
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run("kubectl", args, "")
    }

    /// `kubectl apply` of a text.
    pub(crate) fn apply(&self, text: &str) -> Result<String> {
        self.run("kubectl", &["apply", "-f", "-"], text)
    }

    /// An object, or a list of them.
    pub(crate) fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Names of the pods with a label that are to stay.
    pub(crate) fn names(&self, namespace: &str, label: &str) -> Result<Vec<String>> {
        let pods = self.get(&["pods", "-n", namespace, "-l", label])?;
        let pods = pods["items"].as_array().into_iter().flatten();
        let stay = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(stay.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// Install or upgrade the chart by this helm, with more values.
    pub(crate) fn helm(
        &self,
        helm: &str,
        verb: &str,
        namespace: &str,
        more: &[&str],
    ) -> Result<String> {
        let mut args = vec![
            verb,
            "heddle",
            "charts/heddle",
            "--namespace",
            namespace,
            "--create-namespace",
            "--wait",
            "--timeout",
            "60s",
        ];
        for value in VALUES.iter().chain(more) {
            args.extend(["--set", value]);
        }
        self.run(helm, &args, "")
    }

    /// Wait until a Deployment is as it should be.
    pub(crate) fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        let name = format!("deployment/{deployment}");
        self.kubectl(&["-n", namespace, "rollout", "status", &name, "--timeout=90s"]).map(drop)
    }

    /// Where the gateway is.
    pub(crate) fn gateway(&self) -> Result<SocketAddr> {
        let service = self.get(&["service", "heddle-gateway", "-n", SYSTEM])?;
        let address = service["spec"]["clusterIP"].as_str().context("an address")?;
        Ok(format!("{address}:80").parse()?)
    }

    /// Requests through the gateway, without pause.
    pub(crate) fn traffic(&self) -> Result<Traffic> {
        Ok(Traffic::start(self.gateway()?, EDGE))
    }

    /// Metrics of the controller that leads.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let lease = self.get(&["lease", "heddle-leader", "-n", SYSTEM])?;
        let leader = lease["spec"]["holderIdentity"].as_str().context("a leader")?;
        let forward = self.forward(SYSTEM, &format!("pod/{leader}"), 15014).await?;
        let answer = Client::new(forward.address).get("localhost", "/metrics").await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// A client of the admin endpoint of some controller.
    pub(crate) async fn admin(&self) -> Result<Forward> {
        self.admin_of("deployment/heddle").await
    }

    /// A client of the admin endpoint of this controller.
    pub(crate) async fn admin_of(&self, controller: &str) -> Result<Forward> {
        let forward = self.forward(SYSTEM, controller, 8080).await?;
        until("the admin endpoint", async || forward.page("/debug/syncz").await.is_ok()).await?;
        Ok(forward)
    }

    /// A port on loopback that leads to a port of a pod.
    pub(crate) async fn forward(&self, namespace: &str, to: &str, port: u16) -> Result<Forward> {
        let address = free_address()?;
        let ports = format!("{}:{port}", address.port());
        let child = Command::new("kubectl")
            .args(["-n", namespace, "port-forward", to, &ports])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let forward = Forward { child, address };
        until("a port", async || TcpStream::connect(address).await.is_ok()).await?;
        Ok(forward)
    }

    /// `heddle`, as somebody on a laptop runs it.
    pub(crate) fn heddle(&self, args: &[&str]) -> Result<String> {
        self.run(sibling("heddle")?, args, "")
    }

    /// What the cluster looks like, for who must find out why a case failed.
    pub(crate) fn look(&self) -> String {
        let commands: [&[&str]; 3] = [
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "virtualservices,destinationrules,gateways", "-A"],
            &["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller", "--tail=15"],
        ];
        commands
            .iter()
            .map(|c| self.run("kubectl", c, "").unwrap_or_else(|error| format!("{error:#}\n")))
            .collect()
    }
}

// === impl Forward ===

impl Forward {
    pub(crate) async fn page(&self, path: &str) -> Result<Value> {
        Client::new(self.address).json(path).await
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Wait half a minute for a condition.
pub(crate) async fn until(what: &str, met: impl AsyncFn() -> bool) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + LIMIT;
    while !met().await {
        ensure!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
