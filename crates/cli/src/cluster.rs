//! The controllers of a cluster, asked through the API server.
//!
//! In: a kubeconfig. Out: what each controller's admin endpoint answers. That endpoint is on the
//! loopback of its pod, where a port-forward leads; the API server decides who may open one.
//!
//! **Invariant:** changes nothing in the cluster.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::KubeConfigOptions;
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::admin;
use crate::controllers::Answer;

/// How the chart labels the pods of controllers.
const CONTROLLERS: &str = "app.kubernetes.io/name=heddle,app.kubernetes.io/component=controller";
/// Port of the admin endpoint within a pod.
const ADMIN_PORT: u16 = 8080;

/// Which cluster.
#[derive(clap::Args)]
pub(crate) struct Cluster {
    /// Ask every controller of the cluster of the kubeconfig
    #[arg(short, long)]
    kubernetes: bool,
    /// Namespace that Heddle is installed in; all are searched if it is not given
    #[arg(short, long, requires = "kubernetes", value_name = "NAME")]
    namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, requires = "kubernetes", value_name = "NAME")]
    context: Option<String>,
}

// === impl Cluster ===

impl Cluster {
    /// Whether a cluster is meant at all.
    pub(crate) fn is_given(&self) -> bool {
        self.kubernetes
    }

    /// Ask every controller, or only the pod of a name, for a page. Fails when none answers.
    pub(crate) async fn ask(&self, path: &str, only: Option<&str>) -> Result<Vec<Answer>> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.context {
            Some(_) => kube::Config::from_kubeconfig(&options).await.map_err(anyhow::Error::from),
            None => kube::Config::infer().await.map_err(anyhow::Error::from),
        };
        let config =
            config.context("--kubernetes needs a kubeconfig: KUBECONFIG, ~/.kube/config")?;
        let url = config.cluster_url.clone();
        let client = Client::try_from(config).with_context(|| format!("a client of {url}"))?;
        let pods: Api<Pod> = match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let found = pods.list(&ListParams::default().labels(CONTROLLERS)).await;
        let found = found.with_context(|| format!("listing the controllers of {url}"))?.items;
        let is_running = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running")
                && pod.metadata.deletion_timestamp.is_none()
                && only.is_none_or(|name| pod.metadata.name.as_deref() == Some(name))
        };
        let running: Vec<Pod> = found.into_iter().filter(is_running).collect();
        if running.is_empty() {
            let place = self.namespace.as_ref().map_or_else(String::new, |n| format!(" in {n}"));
            bail!(
                "no controller of Heddle runs{place} in the cluster at {url}; install charts/heddle"
            );
        }
        let mut answers = Vec::new();
        for pod in running {
            let controller = pod.name_any();
            let api = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let page = page(&api, &controller, path).await;
            answers.push(Answer { controller: Some(controller), page });
        }
        ensure!(
            answers.iter().any(|a| a.page.is_ok()),
            "no controller answers: {}",
            answers
                .iter()
                .filter_map(|a| Some(format!(
                    "{}: {:#}",
                    a.controller.as_ref()?,
                    a.page.as_ref().err()?
                )))
                .collect::<Vec<_>>()
                .join("; ")
        );
        Ok(answers)
    }
}

/// A page of one controller.
async fn page(pods: &Api<Pod>, name: &str, path: &str) -> Result<Value> {
    let mut forward = pods.portforward(name, &[ADMIN_PORT]).await.context("port-forward")?;
    let stream = forward.take_stream(ADMIN_PORT).context("port-forward without a stream")?;
    let host = format!("localhost:{ADMIN_PORT}");
    let body = admin::exchange(stream, &host, path).await?;
    serde_json::from_slice(&body).with_context(|| format!("reading what {path} answered"))
}
