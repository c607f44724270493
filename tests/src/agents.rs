//! A mesh without a cluster whose proxies are run by agents, on loopback.
//!
//! In: YAML of the mesh, binaries. Out: guards of a controller with an authority, and of agents,
//! each with its Envoy; what they say about themselves.
//!
//! **Invariant:** everything is done as a user would do it: by files, flags, signals, HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use identity::{IdentityFolder, JoinTokens, SpiffeId};

use crate::client::{Answer, Client};
use crate::mesh::{Controller, free_address, free_address_of};
use crate::process::{Leashed, children};

/// Time that something may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a mesh and an authority.
#[derive(Debug)]
pub struct Standalone {
    work: tempfile::TempDir,
    binaries: Binaries,
    xds: SocketAddr,
    /// Where the controller serves agents and their proxies.
    pub secure: SocketAddr,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `heddle-controller`.
    pub controller: PathBuf,
    /// `heddle-agent`.
    pub agent: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
}

/// A workload of the namespace `default`, whose name is that of its service account too.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// `sidecar` or `router`.
    pub role: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Where it is.
    pub address: Ipv4Addr,
    /// A label, in YAML.
    pub label: &'a str,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Leashed,
    /// When it was started.
    pub began: Instant,
    /// Envoy's own pages.
    pub admin: SocketAddr,
    /// Readiness.
    pub status: SocketAddr,
    /// Metrics, probes, the end.
    pub metrics: SocketAddr,
    /// Its socket and its bootstrap.
    pub folder: PathBuf,
}

// === impl Standalone ===

impl Standalone {
    /// Write the mesh, and make the authority: agents know it by its roots before there is any
    /// controller.
    pub fn new(binaries: Binaries, mesh: &str) -> Result<Self> {
        let work = tempfile::tempdir()?;
        std::fs::create_dir(work.path().join("mesh"))?;
        std::fs::write(work.path().join("mesh/mesh.yaml"), mesh)?;
        let folder = IdentityFolder::open(&work.path().join("identity"))?;
        let files = folder.self_signed(&"cluster.local".parse()?, SystemTime::now())?;
        std::fs::write(work.path().join("roots.pem"), files.roots)?;
        Ok(Self { work, binaries, xds: free_address()?, secure: free_address()? })
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// The folder that the controller reads.
    pub fn mesh(&self) -> PathBuf {
        self.path("mesh")
    }

    /// Start the controller, and wait until it is ready.
    pub async fn controller(&self) -> Result<Controller> {
        let more = [
            "--identity-directory".to_owned(),
            self.path("identity").display().to_string(),
            "--secure-address".to_owned(),
            self.secure.to_string(),
            "--gateway-identity".to_owned(),
            "default/gateway".to_owned(),
        ];
        let (mesh, log) = (self.mesh(), self.path("controller.log"));
        let binary = &self.binaries.controller;
        let mut controller = Controller::launch_at(binary, &mesh, &log, self.xds, &more)?;
        controller.ready().await?;
        Ok(controller)
    }

    /// Start an agent by a file with these settings beside the usual ones, and a join token.
    pub fn agent(&self, workload: Workload<'_>, more: &str) -> Result<Agent> {
        let Workload { role, name, address, label } = workload;
        let domain = "cluster.local".parse()?;
        let tokens = JoinTokens::new(&IdentityFolder::open(&self.path("identity"))?, domain);
        let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{name}").parse()?;
        let token = tokens.create(&id, Duration::from_secs(600), SystemTime::now())?;
        let token_file = self.path(&format!("{name}.token"));
        std::fs::write(&token_file, token.as_bytes())?;
        let admin = free_address()?;
        let [status, metrics] = [free_address_of(address)?, free_address_of(address)?];
        let folder = self.path(name);
        let settings = format!(
            "role: {role}\npodName: {name}\nnamespace: default\nserviceAccount: {name}\n\
             address: {address}\nlabels: {{{label}}}\nxdsAddress: {}\njoinTokenFile: {}\n\
             roots: {}\nenvoy: {}\nfolder: {}\nconcurrency: 1\nadminPort: {}\nstatusPort: {}\n\
             metricsPort: {}\n{more}",
            self.secure,
            token_file.display(),
            self.path("roots.pem").display(),
            self.binaries.envoy.display(),
            folder.display(),
            admin.port(),
            status.port(),
            metrics.port(),
        );
        let file = self.path(&format!("{name}.yaml"));
        std::fs::write(&file, settings)?;
        let args = ["run".to_owned(), "--config".to_owned(), file.display().to_string()];
        let log = self.path(&format!("{name}.log"));
        let began = Instant::now();
        let process = Leashed::start("heddle-agent", &self.binaries.agent, &args, &log)?;
        Ok(Agent { process, began, admin, status, metrics, folder })
    }
}

// === impl Agent ===

impl Agent {
    /// A page of it, or of its Envoy.
    pub async fn get(&self, address: SocketAddr, path: &str) -> Result<Answer> {
        Client::new(address).get(&address.to_string(), path).await
    }

    /// Status and text of readiness; nothing while nobody answers.
    pub async fn readiness(&self) -> Option<(StatusCode, String)> {
        let answer = self.get(self.status, "/healthz/ready").await.ok()?;
        Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// Wait until its readiness says this.
    pub async fn until(&mut self, says: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = self.readiness().await;
            if last.as_ref().is_some_and(|(_, text)| text.contains(says)) {
                return Ok(());
            }
            self.process.check()?;
            if Instant::now() > deadline {
                bail!("{says:?} is not said, but {last:?}\n{}", self.process.log_end());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Wait until it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        self.until("ready\n").await
    }

    /// The page with the metrics of agent, Envoy and application.
    pub async fn page(&self) -> Result<String> {
        let page = self.get(self.metrics, "/stats/prometheus").await?;
        Ok(String::from_utf8_lossy(&page.body).into_owned())
    }

    /// A metric without labels.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let page = self.page().await?;
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.split(' ').next_back()?.parse().ok());
        value.with_context(|| format!("no metric {name} in {page}"))
    }

    /// The sum of its Envoy's counters and gauges whose names end so.
    pub async fn stat(&self, ending: &str) -> Result<u64> {
        let path = format!("/stats?format=json&filter={}$", ending.replace('.', "\\."));
        let page = Client::new(self.admin).json(&path).await?;
        let stats = page["stats"].as_array().into_iter().flatten();
        Ok(stats.filter_map(|stat| stat["value"].as_u64()).sum())
    }

    /// Id of its Envoy.
    pub fn envoy(&self) -> Result<u32> {
        children(self.process.child()?)?.into_iter().next().context("no Envoy runs")
    }

    /// Its own process.
    pub fn process(&self) -> &Leashed {
        &self.process
    }

    /// Send it a signal.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(name, self.process.child()?)
    }

    /// Wait until it ends by itself. Out: how, and its log.
    pub async fn ended(mut self) -> Result<(ExitStatus, String)> {
        let deadline = Instant::now() + PATIENCE;
        while self.process.check().is_ok() {
            ensure!(Instant::now() < deadline, "it does not end\n{}", self.process.log_end());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let log = std::fs::read_to_string(self.process.log())?;
        Ok((self.process.stop()?, log))
    }
}

/// Send a signal to a process that this one, or a child of it, has started.
pub fn signal(name: &str, process: u32) -> Result<()> {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status()?;
    ensure!(sent.success(), "kill -{name} {process}");
    Ok(())
}

/// Two sidecars without capture: `client` on 127.0.0.1 calls `catalog` on 127.0.0.2 by its own
/// port, and nobody may call that without a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Where the client's sidecar opens the port of the service.
    pub entry: SocketAddr,
    /// Where the server's sidecar takes connections.
    pub server: SocketAddr,
    /// Where the server's application is.
    pub application: SocketAddr,
}

// === impl Pair ===

impl Pair {
    /// The host that the client asks for.
    pub const HOST: &'static str = "catalog.example.com";
    /// The caller.
    pub const CLIENT: Workload<'static> = Workload {
        role: "sidecar",
        name: "client",
        address: Ipv4Addr::LOCALHOST,
        label: "app: client",
    };
    /// The one that is called.
    pub const CATALOG: Workload<'static> = Workload {
        role: "sidecar",
        name: "catalog",
        address: Ipv4Addr::new(127, 0, 0, 2),
        label: "app: catalog",
    };
    /// Beside the usual settings of both.
    pub const SETTINGS: &'static str = "interceptionMode: NONE\ndrainDuration: 0\n";
    /// So that handshakes go on all the time; goes after the mesh.
    pub const SHORT_CONNECTIONS: &'static str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog}
spec:
  host: catalog.example.com
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
";

    /// Ports that are free.
    pub fn new() -> Result<Self> {
        Ok(Self {
            entry: free_address()?,
            server: free_address_of(Self::CATALOG.address)?,
            application: free_address()?,
        })
    }

    /// The mesh: that of `manifests/samples/sidecars`, with these ports.
    pub fn mesh(&self) -> Result<String> {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples/sidecars/mesh");
        let mut mesh = String::new();
        for file in ["catalog.yaml", "policy.yaml"] {
            let text = std::fs::read_to_string(folder.join(file)).context("reading the samples")?;
            mesh = format!("{mesh}---\n{text}");
        }
        for (port, ours) in
            [("8082", self.entry), ("8083", self.server), ("9002", self.application)]
        {
            mesh = mesh.replace(port, &ours.port().to_string());
        }
        Ok(mesh)
    }
}
