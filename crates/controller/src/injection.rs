//! Injection in a cluster: the webhook, and what the leader does so that it is called.
//!
//! In: settings (key `injector` of the controller's ConfigMap), namespaces, reviews by the API
//! server. Out: patches of pods; the roots in the webhook configurations; pods that should have a
//! sidecar and have none, as events and a metric.
//!
//! **Invariant:** nothing of it is needed for the rest of the controller to start and serve.

mod configurations;
mod known;
mod missed;
mod webhook;

use std::sync::Arc;

use identity::CertificateAuthority;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::configurations::Configurations;
use self::known::Known;
use self::missed::Missed;
use crate::metrics::InjectionMetrics;
use crate::world::Shared;

/// What injection is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InjectionSettings {
    /// ConfigMap of the own namespace with the settings.
    pub(crate) config_map: String,
    /// The MutatingWebhookConfiguration of the chart; `<name>-annotated` is the other.
    pub(crate) configuration: String,
}

/// Injection.
pub(crate) struct Injection {
    settings: InjectionSettings,
    client: Client,
    known: Arc<Known>,
    metrics: InjectionMetrics,
}

// === impl Injection ===

impl Injection {
    pub(crate) fn new(
        settings: InjectionSettings,
        client: Client,
        metrics: InjectionMetrics,
    ) -> Self {
        let known = Arc::new(Known::new(client.clone()));
        Self { settings, client, known, metrics }
    }

    /// What it counts.
    pub(crate) fn metrics(&self) -> InjectionMetrics {
        self.metrics.clone()
    }

    /// What answers the API server.
    pub(crate) fn routes(&self) -> axum::Router {
        webhook::routes(Arc::clone(&self.known), self.metrics.clone())
    }

    /// Follow settings and namespaces, and write as the leader, by tasks.
    pub(crate) fn start(
        self,
        ca: Arc<CertificateAuthority>,
        shared: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
        stopped: &watch::Receiver<bool>,
    ) {
        let Self { settings, client, known, metrics } = self;
        let follow = Arc::clone(&known).follow(settings.config_map);
        spawn(tasks, stopped.clone(), follow);
        let configurations =
            Configurations::new(client.clone(), settings.configuration, Arc::clone(&known), ca);
        let leading = shared.leading.subscribe();
        spawn(tasks, stopped.clone(), configurations.run(leading.clone()));
        let missed = Missed::new(client, known, metrics.missed);
        spawn(tasks, stopped.clone(), missed.run(leading));
    }
}

/// Run until told to stop.
fn spawn(
    tasks: &mut JoinSet<()>,
    mut stopped: watch::Receiver<bool>,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = task => {}
        }
    });
}
