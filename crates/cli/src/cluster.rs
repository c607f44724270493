//! The controllers and the agents of a cluster, asked through the API server.
//!
//! In: a kubeconfig. Out: what each controller's admin endpoint answers, and each agent's metrics.
//! Those are asked on the loopback of their pods, where a port-forward leads; the API server decides
//! who may open one.
//!
//! **Invariant:** changes nothing in the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::KubeConfigOptions;
use kube::{Client, ResourceExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admin;
use crate::controllers::Answer;

/// How the chart labels the pods of controllers.
const CONTROLLERS: &str = "app.kubernetes.io/name=heddle,app.kubernetes.io/component=controller";
/// Port of the admin endpoint within a pod.
const ADMIN_PORT: u16 = 8080;
/// Port of an agent's metrics within a pod.
const AGENT_PORT: u16 = 15020;
/// Agents that are asked at once.
const AT_ONCE: usize = 16;
/// Time that an agent has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

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

    async fn client(&self) -> Result<(Client, http::Uri)> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.context {
            Some(_) => kube::Config::from_kubeconfig(&options).await.map_err(anyhow::Error::from),
            None => kube::Config::infer().await.map_err(anyhow::Error::from),
        };
        let config =
            config.context("--kubernetes needs a kubeconfig: KUBECONFIG, ~/.kube/config")?;
        let url = config.cluster_url.clone();
        let client = Client::try_from(config).with_context(|| format!("a client of {url}"))?;
        Ok((client, url))
    }

    /// The pods of the cluster, and a page of each agent: of those in the namespace that is given,
    /// if one is.
    pub(crate) async fn agents(
        &self,
        has_agent: fn(&Pod) -> bool,
        path: &str,
    ) -> Result<(Vec<Pod>, AgentPages)> {
        let (client, url) = self.client().await?;
        // A client may be in any namespace.
        let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await;
        let pods = pods.with_context(|| format!("listing the pods of {url}"))?.items;
        let asked = pods.iter().filter(|pod| has_agent(pod) && is_running(pod)).map(pod_id);
        let is_meant = |id: &PodId| self.namespace.as_ref().is_none_or(|given| *given == id.0);
        let asked: Vec<PodId> = asked.filter(is_meant).collect();
        let mut pages = BTreeMap::new();
        for some in asked.chunks(AT_ONCE) {
            let mut answers = JoinSet::new();
            for id in some {
                let (id, path) = (id.clone(), path.to_owned());
                let api = Api::namespaced(client.clone(), &id.0);
                answers.spawn(async move {
                    let answer = timeout(PATIENCE, page(&api, &id.1, AGENT_PORT, &path)).await;
                    let late = || Err(anyhow!("no answer within {PATIENCE:?}"));
                    (id, answer.unwrap_or_else(|_| late()))
                });
            }
            while let Some(answer) = answers.join_next().await {
                let (id, page) = answer.context("asking a pod")?;
                pages.insert(id, page);
            }
        }
        Ok((pods, pages))
    }

    /// Ask every controller, or only the pod of a name, for a page. Fails when none answers.
    pub(crate) async fn ask(&self, path: &str, only: Option<&str>) -> Result<Vec<Answer>> {
        let (client, url) = self.client().await?;
        let pods: Api<Pod> = match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let found = pods.list(&ListParams::default().labels(CONTROLLERS)).await;
        let found = found.with_context(|| format!("listing the controllers of {url}"))?.items;
        let is_meant = |pod: &Pod| only.is_none_or(|name| pod.name_any() == name);
        let running = found.into_iter().filter(|pod| is_running(pod) && is_meant(pod));
        let running: Vec<Pod> = running.collect();
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
            let page = page(&api, &controller, ADMIN_PORT, path).await;
            let page = page.and_then(|body| {
                let read = serde_json::from_slice(&body);
                read.with_context(|| format!("reading what {path} answered"))
            });
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

/// Namespace and name of a pod.
pub(crate) type PodId = (String, String);

/// What agents answered.
pub(crate) type AgentPages = BTreeMap<PodId, Result<Bytes>>;

/// Namespace and name of a pod.
pub(crate) fn pod_id(pod: &Pod) -> PodId {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// A page of a pod.
async fn page(pods: &Api<Pod>, name: &str, port: u16, path: &str) -> Result<Bytes> {
    let mut forward = pods.portforward(name, &[port]).await.context("port-forward")?;
    let stream = forward.take_stream(port).context("port-forward without a stream")?;
    admin::exchange(stream, &format!("localhost:{port}"), path).await
}
