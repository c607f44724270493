//! The authority and the callers that the controller believes.
//!
//! In: settings. Out: an authority in service on the secure port, and who may ask it and xDS.
//!
//! **Invariant:** xDS takes no join token: what is used up by one call proves nothing about a
//! stream. The secure port answers nobody before there is an authority.

mod bundle;
mod events;
mod node_agents;
mod review;
mod secrets;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use identity::ca::CaSettings;
use identity::{
    Authenticator, CertificateAuthority, Delegation, FolderSource, IdentityFolder, JoinTokens,
    JwtIssuer, ServerIdentity, SpiffeId, Stats, TokenSource,
};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::bundle::BundleWriter;
use self::node_agents::NodeAgents;
use self::review::Reviewer;
use self::secrets::Secrets;
use crate::admin::Gate;
use crate::settings::{IdentitySettings, Kept};
use crate::world::Shared;

/// The identity side of the controller.
pub(crate) struct Identity {
    settings: CaSettings,
    keeper: Keeper,
    stats: Arc<Stats>,
    /// Who may ask for certificates.
    pub(crate) for_certificates: Arc<Authenticator>,
    /// Who may open xDS streams.
    pub(crate) for_streams: Arc<Authenticator>,
    /// Who may ask for certificates of others.
    pub(crate) delegation: Option<Arc<dyn Delegation>>,
    /// Who may be a gateway.
    pub(crate) gateways: Arc<BTreeSet<SpiffeId>>,
}

/// Where the authority's files are.
enum Keeper {
    Folder(FolderSource),
    /// Secrets of a cluster, and the name of the ConfigMaps that tell workloads the roots.
    Cluster(Client, String),
}

// === impl Identity ===

impl Identity {
    /// Who is believed, and where the authority is. `client`: of the cluster, if there is one.
    pub(crate) fn new(settings: IdentitySettings, client: Option<Client>) -> Result<Self> {
        let IdentitySettings { kept, own, names, lifetime, longest, gateways, .. } = settings;
        let trust_domain = own.trust_domain().clone();
        let mut for_streams: Vec<Arc<dyn TokenSource>> = Vec::new();
        let mut only_certificates: Vec<Arc<dyn TokenSource>> = Vec::new();
        let mut delegation: Option<Arc<dyn Delegation>> = None;
        let keeper = match kept {
            Kept::Folder { folder, plug_in, jwt } => {
                let folder = IdentityFolder::open(&folder).context("--identity-directory")?;
                only_certificates.push(Arc::new(JoinTokens::new(&folder, trust_domain.clone())));
                if let Some((issuer, keys)) = jwt {
                    let keys = read(&keys)?;
                    let issuer = JwtIssuer::new(&issuer, &keys, trust_domain.clone());
                    for_streams.push(Arc::new(issuer.context("--jwt-keys")?));
                }
                Keeper::Folder(FolderSource::new(folder, plug_in))
            }
            Kept::Cluster { root_config_map: bundle, node_agents } => {
                let client = client.context("--identity-cluster needs --source kubernetes")?;
                for_streams.push(Arc::new(Reviewer::new(client.clone(), trust_domain.clone())));
                if !node_agents.is_empty() {
                    delegation = Some(Arc::new(NodeAgents::new(client.clone(), node_agents)));
                }
                Keeper::Cluster(client, bundle)
            }
        };
        let stats: Arc<Stats> = Arc::default();
        only_certificates.extend(for_streams.iter().cloned());
        Ok(Self {
            settings: CaSettings {
                trust_domain,
                server: ServerIdentity { id: own, names },
                lifetime,
                longest,
            },
            keeper,
            for_certificates: Arc::new(Authenticator::new(only_certificates, Arc::clone(&stats))),
            for_streams: Arc::new(Authenticator::new(for_streams, Arc::clone(&stats))),
            stats,
            delegation,
            gateways: Arc::new(gateways),
        })
    }

    /// Who is let to admin pages from elsewhere: callers whom the API server of the cluster knows.
    pub(crate) fn gate(&self) -> Option<Gate> {
        match &self.keeper {
            Keeper::Folder(_) => None,
            Keeper::Cluster(client, _) => {
                Some(Gate::new(Arc::clone(&self.for_streams), client.clone()))
            }
        }
    }

    /// Take the authority into service, and look after it by tasks; none when told to stop first.
    pub(crate) async fn start(
        self,
        shared: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Option<Arc<CertificateAuthority>>> {
        let Self { settings, keeper, stats, .. } = self;
        let (found, finds) = mpsc::channel(1);
        let ca = match keeper {
            Keeper::Folder(source) => {
                const STARTING: &str = "starting the certificate authority";
                let folder = source.folder();
                let files = source.files(&settings.trust_domain).context(STARTING)?;
                let ca = CertificateAuthority::start(settings, &files, stats)
                    .with_context(|| folder.display().to_string())
                    .context(STARTING)?;
                source.publish(&ca).context(STARTING)?;
                tasks.spawn(source.run(Arc::clone(&ca), found, stopped.clone()));
                ca
            }
            Keeper::Cluster(client, bundle) => {
                let mut secrets = Secrets::new(
                    client.clone(),
                    settings.trust_domain.clone(),
                    bundle.clone(),
                    Arc::clone(shared),
                );
                let ca = tokio::select! {
                    _ = stopped.wait_for(|stopped| *stopped) => return Ok(None),
                    ca = secrets.start(&settings, &stats) => ca,
                };
                tasks.spawn(secrets.run(Arc::clone(&ca), found, stopped.clone()));
                let writer = BundleWriter::new(client, bundle, Arc::clone(&ca), Arc::clone(shared));
                tasks.spawn(writer.run(stopped.clone()));
                ca
            }
        };
        tasks.spawn(Arc::clone(&ca).run(finds, stopped));
        // It is set here only, once.
        let _ = shared.ca.set(Arc::clone(&ca));
        Ok(Some(ca))
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("reading {} (--jwt-keys)", file.display()))
}
