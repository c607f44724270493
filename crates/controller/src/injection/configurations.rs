//! The webhook configurations: by which roots the API server knows us, and which namespaces ask by
//! annotation.
//!
//! In: the roots of the authority in service, namespaces. Out: `caBundle` of every webhook of the
//! configuration that the chart made, and the other configuration's one webhook: the first of the
//! chart's, for namespaces with the annotation `linkerd.io/inject`, which no selector can see.
//!
//! **Invariant:** writes as the leader only, and only what differs; creates and deletes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use identity::CertificateAuthority;
use injector::names::{LINKERD_INJECT, NAMESPACE_INJECTION, REVISION};
use injector::{Namespace, Settings};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::known::Known;

/// Pause between two looks. A new root is trusted for longer than this before it signs.
const LOOK: Duration = Duration::from_secs(2);
/// Label by which a namespace's name can be selected.
const NAME: &str = "kubernetes.io/metadata.name";
/// What the webhook of annotated namespaces is called.
const ANNOTATED: &str = "annotated.namespace.injection.heddle.io";

/// The writer.
pub(super) struct Configurations {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
    known: Arc<Known>,
    ca: Arc<CertificateAuthority>,
    /// What was last said to be wrong.
    said: Option<String>,
}

// === impl Configurations ===

impl Configurations {
    pub(super) fn new(
        client: Client,
        name: String,
        known: Arc<Known>,
        ca: Arc<CertificateAuthority>,
    ) -> Self {
        Self { api: Api::all(client), name, known, ca, said: None }
    }

    /// Write what differs, as long as this replica leads.
    pub(super) async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if leading.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            clock.tick().await;
            match self.write().await {
                Ok(()) => self.said = None,
                Err(error) => {
                    let why = error.to_string();
                    if self.said.as_ref() != Some(&why) {
                        tracing::warn!(
                            "MutatingWebhookConfiguration {}: pods that ask for a sidecar may \
                             have to wait: {why}",
                            self.name
                        );
                        self.said = Some(why);
                    }
                }
            }
        }
    }

    async fn write(&self) -> kube::Result<()> {
        let roots = ByteString(self.ca.authority().roots().to_pem().into_bytes());
        let configuration = self.api.get(&self.name).await?;
        let webhooks = configuration.webhooks.clone().unwrap_or_default();
        let stale = |w: &MutatingWebhook| w.client_config.ca_bundle.as_ref() != Some(&roots);
        let mut changes = Vec::new();
        for (index, webhook) in webhooks.iter().enumerate().filter(|(_, w)| stale(w)) {
            let at = format!("/webhooks/{index}");
            // Somebody may change the list meanwhile.
            let test = json!({"op": "test", "path": format!("{at}/name"), "value": webhook.name});
            let path = format!("{at}/clientConfig/caBundle");
            changes.extend([test, json!({"op": "add", "path": path, "value": roots})]);
        }
        if !changes.is_empty() {
            let patch = serde_json::from_value(changes.into());
            let patch = Patch::<()>::Json(patch.map_err(kube::Error::SerdeError)?);
            self.api.patch(&self.name, &PatchParams::default(), &patch).await?;
            tracing::info!("MutatingWebhookConfiguration {} has our roots", self.name);
        }
        let Some(in_force) = self.known.in_force() else { return Ok(()) };
        let names = annotated(&self.known.namespaces(), &in_force.settings);
        let wanted = match webhooks.first() {
            Some(first) if !names.is_empty() => vec![for_namespaces(first, names, roots)],
            _ => Vec::new(),
        };
        let other = self.api.get(&format!("{}-annotated", self.name)).await?;
        if other.webhooks.clone().unwrap_or_default() != wanted {
            let patch = Patch::Merge(json!({"webhooks": wanted}));
            self.api.patch(&other.name_any(), &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }
}

/// Namespaces that ask by annotation, and say nothing by label.
fn annotated(namespaces: &[Namespace], settings: &Settings) -> BTreeSet<String> {
    let asks = |namespace: &&Namespace| {
        let said = namespace.annotations.get(LINKERD_INJECT).map(String::as_str);
        let labelled = |label: &str| namespace.labels.contains_key(label);
        matches!(said, Some("enabled" | "ingress"))
            && !labelled(NAMESPACE_INJECTION)
            && !labelled(REVISION)
            && !settings.is_system(&namespace.name)
    };
    namespaces.iter().filter(asks).map(|namespace| namespace.name.clone()).collect()
}

/// The chart's webhook of labelled namespaces, for these. Shape: as the API server keeps it, so
/// that it can be compared.
fn for_namespaces(
    first: &MutatingWebhook,
    names: BTreeSet<String>,
    roots: ByteString,
) -> MutatingWebhook {
    let names = LabelSelectorRequirement {
        key: NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(names.into_iter().collect()),
    };
    let selector =
        LabelSelector { match_expressions: Some(vec![names]), ..LabelSelector::default() };
    let client_config =
        WebhookClientConfig { ca_bundle: Some(roots), ..first.client_config.clone() };
    MutatingWebhook {
        name: ANNOTATED.to_owned(),
        namespace_selector: Some(selector),
        client_config,
        ..first.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_namespaces_then_those_with_the_annotation_and_no_label_are_named() {
        let namespace = |name: &str, label: Option<&str>, said: &str| Namespace {
            name: name.to_owned(),
            labels: label.map(|l| (l.to_owned(), "x".to_owned())).into_iter().collect(),
            annotations: [(LINKERD_INJECT.to_owned(), said.to_owned())].into(),
        };
        let all = [
            namespace("one", None, "enabled"),
            namespace("two", None, "ingress"),
            namespace("off", None, "disabled"),
            namespace("labelled", Some(NAMESPACE_INJECTION), "enabled"),
            namespace("revision", Some(REVISION), "enabled"),
            namespace("kube-system", None, "enabled"),
        ];
        let named = annotated(&all, &Settings::default());
        assert_eq!(named, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
        let roots = ByteString(b"roots".to_vec());
        let first =
            MutatingWebhook { failure_policy: Some("Fail".to_owned()), ..Default::default() };
        let webhook = for_namespaces(&first, named, roots.clone());
        assert_eq!(webhook.client_config.ca_bundle, Some(roots));
        assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
        let selector = serde_json::to_value(webhook.namespace_selector).unwrap();
        let wanted = json!({"matchExpressions": [
            {"key": NAME, "operator": "In", "values": ["one", "two"]}]});
        assert_eq!(selector, wanted);
    }
}
