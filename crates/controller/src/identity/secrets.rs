//! The authority of a cluster, in Secrets of the controller's own namespace.
//!
//! In: Secret `cacerts`, a CA of the user's, or else Secret `heddle-ca-secret`, a root that is made
//! here. Both are watched. Out: files for the authority in service.
//!
//! Of replicas that start at once on an empty cluster one creates the Secret, and all use that one:
//! only the API server knows who was first. A Secret that is deleted while the controller runs
//! takes nothing away: the authority is still in memory, and the leader puts a root of ours back.
//! A user's CA stays in memory as well, even where there is a root of ours: to change the root of
//! a mesh takes a deliberate act.
//!
//! **Invariant:** `cacerts` is never written; a Secret that exists is never overwritten; not
//! knowing whether there is one changes nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use identity::ca::CaSettings;
use identity::folder::{CERTIFICATE, CHAIN, KEY, ROOTS};
use identity::{Authority, CaFiles, CertificateAuthority, Found, Stats, TrustDomain};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::bundle::{is_ours, labels};
use super::events::Events;
use crate::world::Shared;

/// Name of the Secret with a CA of the user's; its keys are the names of the files.
pub(super) const PLUG_IN: &str = "cacerts";
/// Name of the Secret with a root that was made here. Not Istio's `istio-ca-secret`: two control
/// planes must not take each other's key for their own.
pub(super) const OWN: &str = "heddle-ca-secret";
/// Type of that Secret.
const TYPE: &str = "heddle.io/ca-root";
/// How long a replica that starts waits for somebody to put the root back that workloads trust.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between looks at the clock.
const LOOK: Duration = Duration::from_secs(60);
/// Pause before something that is left to do is tried again.
const PAUSE: Duration = Duration::from_secs(2);

type Watch = Pin<Box<dyn Stream<Item = watcher::Result<Option<Secret>>> + Send>>;

/// The Secrets.
pub(super) struct Secrets {
    client: Client,
    trust_domain: TrustDomain,
    /// Name of the ConfigMap by which workloads know the roots.
    bundle: String,
    shared: Arc<Shared>,
    plug_in: Watched,
    own: Watched,
    /// The Secret whose authority is in service.
    serving: Option<&'static str>,
    /// Whether something is left to do that no change of a Secret may announce.
    left: bool,
    /// Since when a root is missing.
    missing: Option<Instant>,
    /// What was last said about it.
    said: Option<&'static str>,
    events: Events,
}

/// One Secret that is watched.
struct Watched {
    name: &'static str,
    watch: Watch,
    presence: Presence,
    /// What is in it, until that was handed over.
    files: Option<Result<CaFiles>>,
    failing: bool,
}

/// Whether a Secret is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Unknown,
    Absent,
    There,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Not enough is known.
    Wait,
    /// Take what is in this Secret.
    Take(&'static str),
    /// Create a root.
    Create,
    /// Put the root back that is in memory.
    Restore,
    /// Go on with the CA that is in memory only.
    Keep,
}

/// What to do, by what is there and which Secret is in service.
fn decide(plug_in: Presence, own: Presence, serving: Option<&'static str>) -> Step {
    match (plug_in, own) {
        (Presence::Unknown, _) => Step::Wait,
        (Presence::There, _) => Step::Take(PLUG_IN),
        (Presence::Absent, _) if serving == Some(PLUG_IN) => Step::Keep,
        (Presence::Absent, Presence::Unknown) => Step::Wait,
        (Presence::Absent, Presence::There) => Step::Take(OWN),
        (Presence::Absent, Presence::Absent) if serving.is_some() => Step::Restore,
        (Presence::Absent, Presence::Absent) => Step::Create,
    }
}

// === impl Secrets ===

impl Secrets {
    /// Those of the client's own namespace. `bundle`: name of the ConfigMap with the roots.
    pub(super) fn new(
        client: Client,
        trust_domain: TrustDomain,
        bundle: String,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            events: Events::new(&client, Arc::clone(&shared)),
            plug_in: Watched::new(&client, PLUG_IN),
            own: Watched::new(&client, OWN),
            client,
            trust_domain,
            bundle,
            shared,
            serving: None,
            left: false,
            missing: None,
            said: None,
        }
    }

    /// Wait for an authority that can be taken into service.
    pub(super) async fn start(
        &mut self,
        settings: &CaSettings,
        stats: &Arc<Stats>,
    ) -> Arc<CertificateAuthority> {
        let mut said = String::new();
        loop {
            let why = match self.next(None).await {
                Found::Unreadable(why) => why,
                Found::Files(files) => {
                    match CertificateAuthority::start(settings.clone(), &files, Arc::clone(stats)) {
                        Ok(ca) => return ca,
                        Err(error) => error.to_string(),
                    }
                }
            };
            if why != said {
                tracing::error!("there is no certificate authority yet: {why}");
                said = why;
            }
        }
    }

    /// Hand over what changes, until told to stop.
    pub(super) async fn run(
        mut self,
        ca: Arc<CertificateAuthority>,
        found: mpsc::Sender<Found>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut clock = tokio::time::interval(LOOK);
        loop {
            let next = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                next = self.next(Some(&ca)) => Some(next),
                _ = clock.tick() => None,
            };
            match next {
                None => {
                    let secret = self.serving.unwrap_or(OWN);
                    self.events.of_end(secret, &ca.authority(), SystemTime::now()).await;
                }
                Some(next) => {
                    if let Found::Unreadable(why) = &next {
                        let plugged = self.plug_in.presence == Presence::There;
                        self.events.of_fault(if plugged { PLUG_IN } else { OWN }, why).await;
                    }
                    if found.send(next).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// What is found next: after a change of a Secret, or when something is left to do.
    async fn next(&mut self, ca: Option<&CertificateAuthority>) -> Found {
        loop {
            tokio::select! {
                () = self.plug_in.changed() => {}
                () = self.own.changed() => {}
                () = tokio::time::sleep(PAUSE), if self.left => {}
            }
            match self.step(ca).await {
                Ok(Some(files)) => return Found::Files(files),
                Ok(None) => {}
                Err(error) => return Found::Unreadable(format!("{error:#}")),
            }
        }
    }

    async fn step(&mut self, ca: Option<&CertificateAuthority>) -> Result<Option<CaFiles>> {
        let serving = ca.and(self.serving);
        let step = decide(self.plug_in.presence, self.own.presence, serving);
        self.left = matches!(step, Step::Create | Step::Restore);
        if !self.left {
            self.missing = None;
        }
        match step {
            Step::Wait => Ok(None),
            Step::Take(name) => self.take(name),
            Step::Keep => {
                self.say(
                    "Secret cacerts is gone; its CA is still in memory, but not after a restart: \
                     put it back",
                );
                Ok(None)
            }
            Step::Restore => {
                self.say("Secret heddle-ca-secret is gone; the leader puts it back");
                if let Some(ca) = ca.filter(|_| *self.shared.leading.borrow()) {
                    create(&self.client, ca.authority().to_files()?).await?;
                }
                Ok(None)
            }
            Step::Create => {
                let missing = *self.missing.get_or_insert_with(Instant::now);
                if missing.elapsed() < PATIENCE && is_published(&self.client, &self.bundle).await? {
                    self.say(
                        "workloads trust a root, but there is no Secret heddle-ca-secret; waiting \
                         for a replica that has it in memory",
                    );
                    return Ok(None);
                }
                let files = Authority::self_signed(&self.trust_domain, SystemTime::now())?;
                create(&self.client, files).await?;
                Ok(None)
            }
        }
    }

    /// The files of a Secret, checked; none if they were handed over already.
    fn take(&mut self, name: &'static str) -> Result<Option<CaFiles>> {
        self.said = None;
        let secret = if name == PLUG_IN { &mut self.plug_in } else { &mut self.own };
        let Some(files) = secret.files.take() else { return Ok(None) };
        let of = || format!("Secret {name}");
        let files = files.with_context(of)?;
        Authority::from_files(&files, SystemTime::now()).with_context(of)?;
        self.serving = Some(name);
        Ok(Some(files))
    }

    /// Say it, unless that was said last.
    fn say(&mut self, what: &'static str) {
        if self.said.replace(what) != Some(what) {
            tracing::warn!("{what}");
        }
    }
}

// === impl Watched ===

impl Watched {
    fn new(client: &Client, name: &'static str) -> Self {
        let api: Api<Secret> = Api::default_namespaced(client.clone());
        Self {
            name,
            watch: Box::pin(watch_object(api, name).default_backoff()),
            presence: Presence::Unknown,
            files: None,
            failing: false,
        }
    }

    /// Wait until the API server says something about it.
    async fn changed(&mut self) {
        loop {
            match self.watch.next().await {
                Some(Ok(secret)) => {
                    self.failing = false;
                    self.presence = match &secret {
                        Some(_) => Presence::There,
                        None => Presence::Absent,
                    };
                    self.files = secret.map(files_of);
                    return;
                }
                Some(Err(error)) if !self.failing => {
                    self.failing = true;
                    tracing::warn!(
                        secret = self.name,
                        "the Secret cannot be watched; what is known stays in force: {error}"
                    );
                }
                Some(Err(_)) => {}
                // It never ends.
                None => std::future::pending().await,
            }
        }
    }
}

/// Create the Secret of ours; if somebody was first, theirs is the one. Either way it comes by
/// the watch.
async fn create(client: &Client, files: CaFiles) -> Result<()> {
    let CaFiles { certificate, mut key, roots, chain } = files;
    let data = [
        (CERTIFICATE, certificate),
        (KEY, std::mem::take(&mut *key)),
        (ROOTS, roots),
        (CHAIN, chain),
    ];
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(OWN.to_owned()),
            labels: Some(labels(client.default_namespace())),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).into()),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::default_namespaced(client.clone());
    let created = api.create(&PostParams::default(), &secret).await;
    drop(key_of(&mut secret));
    match created {
        Ok(mut created) => {
            drop(key_of(&mut created));
            tracing::info!("the root of the mesh is in Secret {OWN}");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("creating Secret {OWN}")),
    }
}

/// Whether workloads were told of a root by a control plane of this namespace.
async fn is_published(client: &Client, name: &str) -> Result<bool> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let found = api.get_opt(name).await;
    let found = found.with_context(|| format!("reading ConfigMap {name}"))?;
    Ok(found.is_some_and(|map| is_ours(&map, client.default_namespace())))
}

/// The files in a Secret. Without `root-cert.pem` the certificate is the root.
fn files_of(mut secret: Secret) -> Result<CaFiles> {
    let key = key_of(&mut secret);
    let mut data = secret.data.unwrap_or_default();
    let mut part = |name: &str| data.remove(name).map(|bytes| bytes.0).filter(|b| !b.is_empty());
    let missing = |name: &str| format!("it has no {name}");
    let certificate = part(CERTIFICATE).with_context(|| missing(CERTIFICATE))?;
    Ok(CaFiles {
        key: key.with_context(|| missing(KEY))?,
        roots: part(ROOTS).unwrap_or_else(|| certificate.clone()),
        chain: part(CHAIN).unwrap_or_default(),
        certificate,
    })
}

/// The key of a Secret, taken out of it; it is wiped when dropped.
fn key_of(secret: &mut Secret) -> Option<Zeroizing<Vec<u8>>> {
    let key = Zeroizing::new(secret.data.as_mut()?.remove(KEY)?.0);
    Some(key).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests;
