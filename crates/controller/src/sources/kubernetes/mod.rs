//! A Kubernetes cluster, watched.
//!
//! In: the API server. Out: `Source` events, and `Synced` once every kind has been read.
//!
//! Each kind is watched by a task of its own, which lowers what it reads. A kind that the API
//! server does not have (no CRD) counts as empty, and is looked for again now and then. While the
//! API server is away everything that was read stays in force.
//!
//! **Invariant:** a kind is empty only if the API server said so; not knowing changes nothing.

mod index;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use config::KINDS;
use kube::Client;
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;

use self::index::Reading;
use self::watch::Watch;
use crate::event::Event;
use crate::sources::SourceStates;

/// How long the connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The source.
pub(crate) struct Kubernetes {
    client: Client,
    mesh_config_map: String,
    states: Arc<SourceStates>,
}

/// Tells the loop that everything has been read, once that is so.
pub(super) struct Unsynced {
    kinds: AtomicUsize,
    inbox: mpsc::Sender<Event>,
}

/// A client by the kubeconfig, or by the service account of the pod that this runs in.
pub(crate) async fn connect() -> Result<Client> {
    let mut config = kube::Config::infer().await.context(
        "--source kubernetes needs a kubeconfig (KUBECONFIG, ~/.kube/config) or the service \
         account of a pod",
    )?;
    config.connect_timeout = Some(CONNECT);
    let url = config.cluster_url.clone();
    let client = Client::try_from(config).with_context(|| format!("a client of {url}"))?;
    tracing::info!(server = %url, namespace = client.default_namespace(), "watching a cluster");
    Ok(client)
}

// === impl Kubernetes ===

impl Kubernetes {
    /// Watch the cluster that this is a client of.
    pub(crate) fn new(client: Client, mesh_config_map: String, states: Arc<SourceStates>) -> Self {
        Self { client, mesh_config_map, states }
    }

    /// Run until told to stop.
    pub(crate) async fn run(
        self,
        inbox: mpsc::Sender<Event>,
        stopped: signal::Receiver<bool>,
    ) -> Result<()> {
        let Self { client, mesh_config_map, states } = self;
        let kinds = KINDS.iter().filter(|kind| kind.in_api).map(Reading::Kind);
        let readings: Vec<Reading> =
            kinds.chain(std::iter::once(Reading::MeshConfig { name: mesh_config_map })).collect();
        let kinds = AtomicUsize::new(readings.len());
        let unsynced = Arc::new(Unsynced { kinds, inbox: inbox.clone() });
        let mut tasks = JoinSet::new();
        for reading in readings {
            let watch = Watch::new(
                client.clone(),
                reading,
                inbox.clone(),
                Arc::clone(&unsynced),
                Arc::clone(&states),
            );
            tasks.spawn(watch.run(stopped.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a watch failed")?;
        }
        Ok(())
    }
}

// === impl Unsynced ===

impl Unsynced {
    /// One more kind has been read as a whole. What it gave is in the inbox already.
    async fn one_less(&self) {
        if self.kinds.fetch_sub(1, Ordering::AcqRel) == 1 {
            // An error means that the loop is gone, which ends everything.
            let _ = self.inbox.send(Event::Synced).await;
        }
    }
}
