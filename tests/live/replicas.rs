//! Controllers over one folder, which end and come back.
//!
//! In: a binary and a folder. Out: which of them serve, what these say of their streams, and where
//! proxies find them.
//!
//! **Invariant:** proxies are led to a replica from when it is ready, and has read what was written
//! last, until it is told to end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use house::client::Client;
use house::mesh::{Controller, SyncState};
use house::relay::Targets;
use house::world::Step;
use serde_json::Value;
use tokio::task::JoinHandle;

/// Time that a replica may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of them.
pub(crate) struct Replicas {
    binary: PathBuf,
    directory: PathBuf,
    work: PathBuf,
    arguments: Vec<String>,
    /// Those that serve.
    pub(crate) targets: Targets,
    /// The oldest first.
    running: Vec<Replica>,
    /// Each is followed by a new one.
    ending: Vec<JoinHandle<Result<()>>>,
    /// How many were started.
    pub(crate) started: usize,
    /// What was written last.
    last: Option<Step>,
}

/// A controller, and who asks it.
struct Replica {
    controller: Controller,
    admin: Client,
    since: Instant,
    serves: bool,
}

// === impl Replicas ===

impl Replicas {
    /// Start so many over a folder. `drain`: how long each takes to end, in whole seconds.
    pub(crate) async fn start(
        binary: &Path,
        directory: &Path,
        count: usize,
        drain: Duration,
        work: &Path,
    ) -> Result<Self> {
        let mut replicas = Self {
            binary: binary.to_owned(),
            directory: directory.to_owned(),
            work: work.to_owned(),
            arguments: vec![format!("--drain-duration={}s", drain.as_secs())],
            targets: Targets::default(),
            running: Vec::new(),
            ending: Vec::new(),
            started: 0,
            last: None,
        };
        for _ in 0..count {
            replicas.launch()?;
        }
        replicas.all_serve().await?;
        Ok(replicas)
    }

    /// All that serve must read this.
    pub(crate) fn wrote(&mut self, step: Step) {
        self.last = Some(step);
    }

    /// How many serve.
    pub(crate) fn serving(&self) -> usize {
        self.running.iter().filter(|replica| replica.serves).count()
    }

    /// End one without a warning, and start it again.
    pub(crate) fn kill(&mut self, number: usize) -> Result<()> {
        self.running.remove(number).controller.kill()?;
        self.lead();
        self.launch()
    }

    /// Tell one to end; it is started again once it has.
    pub(crate) fn stop(&mut self, number: usize) {
        let replica = self.running.remove(number);
        self.lead();
        self.ending.push(tokio::task::spawn_blocking(|| replica.controller.stop()));
    }

    /// See who has ended and who is ready. Whether all that serve have read what was written last.
    pub(crate) async fn look(&mut self) -> Result<bool> {
        for ended in self.ending.extract_if(.., |ending| ending.is_finished()).collect::<Vec<_>>() {
            ended.await??;
            self.launch()?;
        }
        let (mut all_read, mut more) = (true, false);
        for replica in &mut self.running {
            let ready = replica.serves || replica.controller.is_ready().await?;
            let read = ready && replica.has_read(self.last.as_ref()).await?;
            all_read &= read || !replica.serves;
            more |= read && !replica.serves;
            replica.serves |= read;
            replica.controller.check()?;
            ensure!(
                read || replica.since.elapsed() < PATIENCE || replica.serves,
                "a replica is not ready"
            );
        }
        if more {
            self.lead();
        }
        Ok(all_read)
    }

    /// Wait until all serve.
    pub(crate) async fn all_serve(&mut self) -> Result<()> {
        while !self.ending.is_empty() || self.serving() < self.running.len() {
            self.look().await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// What those that serve say of their streams.
    pub(crate) async fn streams(&mut self) -> Result<Vec<SyncState>> {
        let mut streams = Vec::new();
        for replica in self.running.iter_mut().filter(|replica| replica.serves) {
            streams.extend(replica.controller.sync_states(&mut replica.admin).await?);
        }
        Ok(streams)
    }

    /// What a proxy is to have, in the shape of Envoy's own `/config_dump`.
    pub(crate) async fn desired(&mut self, node: &str) -> Result<Value> {
        let page = format!("/debug/config_dump?proxyID={node}");
        for replica in self.running.iter_mut().filter(|replica| replica.serves) {
            if replica.controller.sync_state(&mut replica.admin, node).await?.is_some() {
                return replica.admin.json(&page).await;
            }
        }
        bail!("{node} is not connected")
    }

    /// End all of them.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.all_serve().await?;
        while !self.running.is_empty() {
            self.stop(0);
        }
        for ended in self.ending {
            ended.await??;
        }
        Ok(())
    }

    /// Lead new connections to those that serve.
    fn lead(&self) {
        let serving = self.running.iter().filter(|replica| replica.serves);
        self.targets.set(serving.map(|replica| replica.controller.xds).collect());
    }

    fn launch(&mut self) -> Result<()> {
        self.started += 1;
        let log = self.work.join(format!("controller-{}.log", self.started));
        let controller =
            Controller::launch_with(&self.binary, &self.directory, &log, &self.arguments)?;
        let admin = Client::new(controller.admin);
        self.running.push(Replica { controller, admin, since: Instant::now(), serves: false });
        Ok(())
    }
}

// === impl Replica ===

impl Replica {
    /// Whether it serves what was written.
    async fn has_read(&mut self, step: Option<&Step>) -> Result<bool> {
        let Some(Step { content, service, generation, .. }) = step else { return Ok(true) };
        let page = self.admin.json("/debug/configz").await?;
        let objects = page["objects"].as_array().context("/debug/configz has no objects")?;
        let found = objects.iter().find(|o| o["kind"] == "Service" && o["name"] == **service);
        Ok(match found {
            Some(found) => content.is_some() && found["generation"] == *generation,
            None => content.is_none(),
        })
    }
}
