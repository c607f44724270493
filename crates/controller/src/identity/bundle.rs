//! The roots of the mesh, told to every workload: a ConfigMap in each namespace.
//!
//! In: the roots of the authority in service, the namespaces that the world holds. Out: ConfigMaps
//! with the key `root-cert.pem`, which pods mount to know the controller by.
//!
//! **Invariant:** writes as the leader only, and only what differs; a ConfigMap that somebody else
//! made is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use identity::CertificateAuthority;
use identity::folder::ROOTS;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::world::Shared;

/// Namespaces whose pods are no workloads of a mesh.
const EXCLUDED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// Label with the namespace of the control plane that wrote an object: two in one cluster must
/// not write the same.
const CONTROL_PLANE: &str = "heddle.io/control-plane";
/// How we sign what we write.
const MANAGER: &str = "heddle";
/// Pause between looks at the world, and ConfigMaps written at each at most.
const PACE: (Duration, usize) = (Duration::from_millis(500), 50);
/// Pause after a ConfigMap that cannot be written: its namespace may be going.
const AGAIN: Duration = Duration::from_secs(10);

/// The writer.
pub(super) struct BundleWriter {
    client: Client,
    /// Name of the ConfigMaps.
    name: String,
    ca: Arc<CertificateAuthority>,
    shared: Arc<Shared>,
    /// Whether it was said that somebody else writes the same.
    warned: bool,
}

/// What is known of the ConfigMaps, by namespace.
#[derive(Default)]
struct Known {
    held: BTreeMap<String, Held>,
    /// Namespaces of a list that is under way.
    listed: BTreeSet<String>,
    /// Whether there was a whole list.
    complete: bool,
    failed: BTreeMap<String, Instant>,
}

/// A ConfigMap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Ours; hash of its roots.
    Ours(u64),
    /// Somebody else's.
    Foreign,
}

/// Labels of what a control plane writes.
pub(super) fn labels(namespace: &str) -> BTreeMap<String, String> {
    [("app.kubernetes.io/managed-by", MANAGER), (CONTROL_PLANE, namespace)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// Whether a ConfigMap was written by the control plane of this namespace.
pub(super) fn is_ours(map: &ConfigMap, namespace: &str) -> bool {
    map.labels().get(CONTROL_PLANE).is_some_and(|writer| writer == namespace)
}

// === impl BundleWriter ===

impl BundleWriter {
    pub(super) fn new(
        client: Client,
        name: String,
        ca: Arc<CertificateAuthority>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { client, name, ca, shared, warned: false }
    }

    /// Run until told to stop.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut leading = self.shared.leading.subscribe();
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                _ = leading.wait_for(|leading| *leading) => {}
            }
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                _ = leading.wait_for(|leading| !*leading) => {}
                () = self.lead() => {}
            }
        }
    }

    /// Write what differs, as the leader.
    async fn lead(&mut self) {
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let config = Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut known = Known::default();
        let mut clock = tokio::time::interval(PACE.0);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => known.note(event, self.client.default_namespace()),
                    Some(Err(error)) => tracing::debug!("ConfigMaps cannot be watched: {error}"),
                    None => return,
                },
                _ = clock.tick() => {
                    if known.complete && *self.shared.ready.borrow() {
                        self.write(&mut known).await;
                    }
                }
            }
        }
    }

    /// Write some of what differs.
    async fn write(&mut self, known: &mut Known) {
        let text = self.ca.authority().roots().to_pem();
        let wanted = Held::Ours(xxh3_64(text.as_bytes()));
        let world = self.shared.world.load_full();
        let namespaces = world.objects.keys().filter(|o| &*o.kind.name == "Namespace");
        let namespaces = namespaces.filter(|o| !EXCLUDED.contains(&&*o.name));
        known.failed.retain(|_, at| at.elapsed() < AGAIN);
        let (_, most) = PACE;
        let mut budget = most;
        for namespace in namespaces.map(|o| &*o.name) {
            match known.held.get(namespace) {
                Some(held) if *held == wanted => continue,
                Some(Held::Foreign) => {
                    self.warn(namespace);
                    continue;
                }
                _ if known.failed.contains_key(namespace) => continue,
                _ if budget == 0 => return,
                _ => budget -= 1,
            }
            match self.write_one(namespace, &text).await {
                // The watch says the same, later.
                Ok(()) => drop(known.held.insert(namespace.to_owned(), wanted)),
                Err(error) => {
                    tracing::debug!(namespace, "the roots cannot be written: {error}");
                    known.failed.insert(namespace.to_owned(), Instant::now());
                }
            }
        }
    }

    async fn write_one(&self, namespace: &str, text: &str) -> kube::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "labels": labels(self.client.default_namespace())},
            "data": {ROOTS: text},
        });
        let signed = PatchParams::apply(MANAGER).force();
        api.patch(&self.name, &signed, &Patch::Apply(&body)).await.map(drop)
    }

    fn warn(&mut self, namespace: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                namespace,
                "ConfigMap {} was made by somebody else and is left alone; pods that mount it do \
                 not know this controller: choose another name with --root-config-map",
                self.name
            );
        }
    }
}

// === impl Known ===

impl Known {
    fn note(&mut self, event: Event<ConfigMap>, own: &str) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(map) => {
                self.listed.extend(map.namespace());
                self.hold(&map, own);
            }
            Event::Apply(map) => self.hold(&map, own),
            Event::Delete(map) => {
                map.namespace().map(|namespace| self.held.remove(&namespace));
            }
            Event::InitDone => {
                self.held.retain(|namespace, _| self.listed.contains(namespace));
                self.complete = true;
            }
        }
    }

    fn hold(&mut self, map: &ConfigMap, own: &str) {
        let roots = map.data.as_ref().and_then(|data| data.get(ROOTS));
        let held = match is_ours(map, own) {
            true => Held::Ours(xxh3_64(roots.map(String::as_bytes).unwrap_or_default())),
            false => Held::Foreign,
        };
        map.namespace().map(|namespace| self.held.insert(namespace, held));
    }
}

#[cfg(test)]
mod tests;
