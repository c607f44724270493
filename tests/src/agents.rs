//! A mesh on loopback whose sidecars are run by real agents, without capture.
//!
//! In: a folder, binaries. Out: a controller with an authority, and agents with their Envoys.
//!
//! **Invariant:** everything is done as a user would do it: by files and flags.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use http::StatusCode;
use identity::{IdentityFolder, JoinTokens};

use crate::client::Client;
use crate::mesh::{Controller, free_address};
use crate::process::Leashed;

const PATIENCE: Duration = Duration::from_secs(20);

/// The files of the mesh, and where it is served.
#[derive(Debug)]
pub struct Standalone {
    work: PathBuf,
    xds: SocketAddr,
    secure: SocketAddr,
}

/// A running agent with its Envoy.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub process: Leashed,
    /// Envoy's admin pages.
    pub admin: SocketAddr,
    status: SocketAddr,
}

// === impl Standalone ===

impl Standalone {
    /// Make an authority in this folder; agents know it by its roots before there is a controller.
    pub fn new(work: &Path) -> Result<Self> {
        std::fs::create_dir_all(work.join("mesh"))?;
        let folder = IdentityFolder::open(&work.join("identity"))?;
        let files = folder.self_signed(&"cluster.local".parse()?, SystemTime::now())?;
        std::fs::write(work.join("roots.pem"), files.roots)?;
        Ok(Self { work: work.to_owned(), xds: free_address()?, secure: free_address()? })
    }

    /// The folder that the controller reads.
    pub fn mesh(&self) -> PathBuf {
        self.work.join("mesh")
    }

    /// Start the controller, and wait until it is ready.
    pub async fn controller(&self, binary: &Path) -> Result<Controller> {
        let more = [
            "--identity-directory".to_owned(),
            self.work.join("identity").display().to_string(),
            "--secure-address".to_owned(),
            self.secure.to_string(),
        ];
        let log = self.work.join("controller.log");
        let mut controller = Controller::launch_at(binary, &self.mesh(), &log, self.xds, &more)?;
        controller.ready().await?;
        Ok(controller)
    }

    /// Start an agent for `name`, which runs as the account of that name, at this address.
    pub fn agent(&self, binary: &Path, envoy: &Path, name: &str, at: IpAddr) -> Result<Agent> {
        let folder = IdentityFolder::open(&self.work.join("identity"))?;
        let tokens = JoinTokens::new(&folder, "cluster.local".parse()?);
        let id = format!("spiffe://cluster.local/ns/default/sa/{name}").parse()?;
        let token = tokens.create(&id, Duration::from_secs(600), SystemTime::now())?;
        let token_file = self.work.join(format!("{name}.token"));
        std::fs::write(&token_file, token.as_bytes())?;
        let [admin, status, metrics] = [free_address()?, free_address()?, free_address()?];
        let settings = format!(
            "podName: {name}\nnamespace: default\nserviceAccount: {name}\naddress: {at}\n\
             labels: {{app: {name}}}\ninterceptionMode: NONE\nxdsAddress: {}\n\
             joinTokenFile: {}\nroots: {}\nenvoy: {}\nfolder: {}\nconcurrency: 1\n\
             adminPort: {}\nstatusPort: {}\nmetricsPort: {}\n",
            self.secure,
            token_file.display(),
            self.work.join("roots.pem").display(),
            envoy.display(),
            self.work.join(format!("{name}-proxy")).display(),
            admin.port(),
            status.port(),
            metrics.port(),
        );
        let file = self.work.join(format!("{name}.yaml"));
        std::fs::write(&file, settings)?;
        let args = ["run".to_owned(), "--config".to_owned(), file.display().to_string()];
        let log = self.work.join(format!("{name}.log"));
        let process = Leashed::start("heddle-agent", binary, &args, &log)?;
        // Its pages are for others than its own machine too, at the address of the workload.
        Ok(Agent { process, admin, status: SocketAddr::new(at, status.port()) })
    }
}

// === impl Agent ===

impl Agent {
    /// Wait until it says that its proxy is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let host = self.status.to_string();
        loop {
            let answer = Client::new(self.status).get(&host, "/healthz/ready").await;
            if answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::OK) {
                return Ok(());
            }
            self.process.check()?;
            if Instant::now() > deadline {
                bail!("the agent is not ready: {answer:?}\n{}", self.process.log_end());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The sum of its Envoy's counters and gauges whose names end so.
    pub async fn stat(&self, ending: &str) -> Result<u64> {
        let path = format!("/stats?format=json&filter={}$", ending.replace('.', "\\."));
        let page = Client::new(self.admin).json(&path).await?;
        let stats = page["stats"].as_array();
        let values = stats.into_iter().flatten().filter_map(|stat| stat["value"].as_u64());
        Ok(values.sum())
    }
}
