//! What the webhook knows: settings and namespaces.
//!
//! In: the ConfigMap of the settings, the metadata of namespaces, both watched. Out: the last that
//! could be read.
//!
//! **Invariant:** settings that cannot be read leave the old ones in force; without any, nobody is
//! injected by guesswork.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use futures::StreamExt;
use injector::{Namespace, ProxyConfig, Settings};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as NamespaceObject};
use kube::api::{ListParams, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{self, ObjectRef, Store, store};
use kube::runtime::watcher::{Config, watch_object, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

type NamespaceMeta = PartialObjectMeta<NamespaceObject>;

/// Keys of the ConfigMap.
const INJECTOR: &str = "injector";
const MESH: &str = "mesh";
/// Questions about one namespace to the API server at once.
const AT_ONCE: usize = 4;
/// Time for such a question, and for waiting until namespaces are known at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before the version of the cluster is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// Settings that are in force.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) settings: Settings,
    pub(super) proxy: ProxyConfig,
}

/// What is known.
pub(super) struct Known {
    client: Client,
    in_force: ArcSwapOption<InForce>,
    namespaces: Store<NamespaceMeta>,
    /// Fills `namespaces`; taken once.
    writer: Mutex<Option<reflector::store::Writer<NamespaceMeta>>>,
    at_once: Semaphore,
}

// === impl Known ===

impl Known {
    pub(super) fn new(client: Client) -> Self {
        let (namespaces, writer) = store();
        Self {
            client,
            in_force: ArcSwapOption::empty(),
            namespaces,
            writer: Mutex::new(Some(writer)),
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    /// The settings; none before the first could be read.
    pub(super) fn in_force(&self) -> Option<Arc<InForce>> {
        self.in_force.load_full()
    }

    /// A namespace, as the watch has it.
    pub(super) async fn namespace(&self, name: &str) -> Option<Namespace> {
        timeout(PATIENCE, self.namespaces.wait_until_ready()).await.ok()?.ok()?;
        self.namespaces.get(&ObjectRef::new(name)).map(|found| of(&found))
    }

    /// Every namespace.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.namespaces.state().iter().map(|found| of(found)).collect()
    }

    /// A namespace, as the API server has it now: a pod may follow its namespace's label sooner
    /// than the watch does.
    pub(super) async fn ask(&self, name: &str) -> Option<Namespace> {
        let _permit = timeout(PATIENCE, self.at_once.acquire()).await.ok()?.ok()?;
        let api: Api<NamespaceObject> = Api::all(self.client.clone());
        let one = ListParams::default().fields(&format!("metadata.name={name}")).limit(1);
        let found = timeout(PATIENCE, api.list_metadata(&one)).await.ok()?.ok()?;
        found.items.first().map(of)
    }

    /// Follow settings and namespaces for ever.
    pub(super) async fn follow(self: Arc<Self>, config_map: String) {
        let Some(writer) = self.writer.lock().await.take() else { return };
        let api: Api<NamespaceMeta> = Api::all(self.client.clone());
        let watch = watcher(api, Config::default()).default_backoff();
        let mut namespaces = pin!(reflector::reflector(writer, watch));
        let namespaces = async {
            while let Some(event) = namespaces.next().await {
                if let Err(error) = event {
                    tracing::debug!("namespaces cannot be watched: {error}");
                }
            }
        };
        tokio::join!(namespaces, self.follow_settings(&config_map));
    }

    async fn follow_settings(&self, config_map: &str) {
        let version = self.version().await;
        let own = self.client.default_namespace();
        let api: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let mut watch = pin!(watch_object(api, config_map).default_backoff());
        let mut said = String::new();
        while let Some(found) = watch.next().await {
            let map = match found {
                Ok(map) => map,
                Err(error) => {
                    tracing::debug!("ConfigMap {config_map} cannot be watched: {error}");
                    continue;
                }
            };
            let read = read(&map.and_then(|map| map.data).unwrap_or_default(), own, version);
            match read {
                Ok(read) => {
                    said.clear();
                    self.in_force.store(Some(Arc::new(read)));
                }
                Err(error) => {
                    let why = format!("ConfigMap {config_map}: {error:#}");
                    if why != said {
                        tracing::error!("the old settings of injection stay in force: {why}");
                        said = why;
                    }
                }
            }
        }
    }

    /// Version of the cluster: major and minor.
    async fn version(&self) -> Option<(u32, u32)> {
        loop {
            match self.client.apiserver_version().await {
                Ok(info) => return number(&info.major).zip(number(&info.minor)),
                Err(error) => {
                    tracing::debug!("the version of the cluster cannot be had: {error}");
                    sleep(AGAIN).await;
                }
            }
        }
    }
}

fn read(
    data: &BTreeMap<String, String>,
    own: &str,
    version: Option<(u32, u32)>,
) -> Result<InForce> {
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    let mut settings =
        Settings::read(text(INJECTOR)).with_context(|| format!("data.{INJECTOR}"))?;
    // Whatever they say: the controller must not wait for itself.
    own.clone_into(&mut settings.system_namespace);
    let proxy = config::read_default_proxy_config(text(MESH));
    // What cannot be read of the mesh settings is told by whoever reads them all.
    let proxy = proxy.map(|read| read.config).unwrap_or_default();
    Ok(InForce { settings: settings.for_cluster(version), proxy })
}

/// A number, whatever follows it: some clusters say `34+`.
fn number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn of(found: &NamespaceMeta) -> Namespace {
    Namespace {
        name: found.name_any(),
        labels: found.labels().clone(),
        annotations: found.annotations().clone(),
    }
}
