//! Pods that should have a sidecar and have none: created before their namespace was labelled, or
//! around the webhook.
//!
//! In: pods without the label that every injected pod has, in namespaces that ask. Out: an event
//! on each, and how many there are.
//!
//! **Invariant:** looks and tells; restarts nothing. As the leader only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use injector::names::{INJECT, TLS_MODE};
use injector::{Namespace, Verdict, decide};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::known::{InForce, Known};
use crate::serve::identifier;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(15);
/// Pods of one answer of the API server.
const PAGE: u32 = 500;
/// Events of one look at most; the rest follows with the next.
const EVENTS: usize = 100;

/// Who looks.
pub(super) struct Missed {
    client: Client,
    known: Arc<Known>,
    gauge: IntGauge,
    recorder: Recorder,
    /// Pods that were told of, by uid.
    told: BTreeSet<String>,
}

// === impl Missed ===

impl Missed {
    pub(super) fn new(client: Client, known: Arc<Known>, gauge: IntGauge) -> Self {
        let reporter = Reporter { controller: "heddle".to_owned(), instance: Some(identifier()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, known, gauge, recorder, told: BTreeSet::new() }
    }

    /// Look as long as this replica leads.
    pub(super) async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if !*leading.borrow() {
                self.gauge.set(0);
            }
            if leading.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            clock.tick().await;
            if let Some(in_force) = self.known.in_force()
                && let Err(error) = self.look(&in_force).await
            {
                tracing::debug!("pods without sidecar cannot be looked for: {error}");
            }
        }
    }

    async fn look(&mut self, in_force: &InForce) -> kube::Result<()> {
        let mut missed = Vec::new();
        let (label, value) = TLS_MODE;
        let without = format!("{label}!={value}");
        for namespace in self.known.namespaces() {
            // Whether anything in it could be missed.
            let asks = decide(&serde_json::json!({}), &namespace, &in_force.settings);
            if asks != Ok(Verdict::Inject) {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace.name);
            let pods = list(&api, &without).await?;
            missed.extend(pods.into_iter().filter(|pod| is_missed(pod, &namespace, in_force)));
        }
        // Pods that ask by themselves, wherever they are.
        let api: Api<Pod> = Api::all(self.client.clone());
        for pod in list(&api, &format!("{INJECT}=true,{without}")).await? {
            let name = pod.namespace().unwrap_or_default();
            let namespace = self.known.namespace(&name).await.unwrap_or_default();
            if is_missed(&pod, &namespace, in_force) && !missed.iter().any(|m| m.uid() == pod.uid())
            {
                missed.push(pod);
            }
        }
        self.gauge.set(i64::try_from(missed.len()).unwrap_or(i64::MAX));
        let uids: BTreeSet<String> = missed.iter().filter_map(ResourceExt::uid).collect();
        self.told.retain(|uid| uids.contains(uid));
        for pod in missed
            .iter()
            .filter(|pod| !pod.uid().is_some_and(|u| self.told.contains(&u)))
            .take(EVENTS)
            .collect::<Vec<_>>()
        {
            self.tell(pod).await;
        }
        Ok(())
    }

    async fn tell(&mut self, pod: &Pod) {
        let event = Event {
            type_: EventType::Warning,
            reason: "InjectionMissed".to_owned(),
            note: Some(
                "the pod is to have a sidecar and has none: it was created before that was asked \
                 for, or while nobody could be asked; restart it (kubectl rollout restart)"
                    .to_owned(),
            ),
            action: "Inject".to_owned(),
            secondary: None,
        };
        match self.recorder.publish(&event, &pod.object_ref(&())).await {
            Ok(()) => self.told.extend(pod.uid()),
            Err(error) => tracing::debug!("an event cannot be written: {error}"),
        }
    }
}

/// Every pod that a selector selects.
async fn list(api: &Api<Pod>, labels: &str) -> kube::Result<Vec<Pod>> {
    let mut out = Vec::new();
    let mut params = ListParams::default()
        .labels(labels)
        .fields("status.phase!=Succeeded,status.phase!=Failed")
        .limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        out.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(out),
        }
    }
}

fn is_missed(pod: &Pod, namespace: &Namespace, in_force: &InForce) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let pod = serde_json::to_value(pod).unwrap_or_default();
    decide(&pod, namespace, &in_force.settings) == Ok(Verdict::Inject)
}
