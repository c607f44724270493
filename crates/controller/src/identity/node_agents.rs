//! Node agents: callers who get certificates for the pods of their node.
//!
//! In: the identities that may, from the settings; the node that the API server names for the
//! caller's token. Out: whether a pod with the wanted identity is on that node.
//!
//! **Invariant:** the API server is asked each time, and not knowing is no; a certificate proves
//! no node, so a node agent asks by its token.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use identity::{Delegation, NotDelegated, SpiffeId, Verified};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Questions to the API server at once; whoever comes then waits.
const AT_ONCE: usize = 8;
/// Time for waiting and for the answer, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those that are configured.
pub(super) struct NodeAgents {
    client: Client,
    agents: BTreeSet<SpiffeId>,
    at_once: Semaphore,
}

// === impl NodeAgents ===

impl NodeAgents {
    /// These may ask for the pods of their node.
    pub(super) fn new(client: Client, agents: BTreeSet<SpiffeId>) -> Self {
        Self { client, agents, at_once: Semaphore::new(AT_ONCE) }
    }

    async fn may(&self, caller: &Verified, id: &SpiffeId) -> Result<(), NotDelegated> {
        let denied = |why: String| Err(NotDelegated::Denied(why));
        if !self.agents.contains(&caller.id) {
            return denied(format!(
                "{} may not ask for another identity; if it is a node agent, add {}/{} to \
                 --node-agent",
                caller.id,
                caller.id.namespace(),
                caller.id.service_account()
            ));
        }
        let Some(node) = &caller.node else {
            return denied(
                "the credential names no node; use a projected token of a pod, and Kubernetes 1.30 \
                 or newer"
                    .to_owned(),
            );
        };
        match self.is_there(node, id).await {
            Ok(true) => Ok(()),
            Ok(false) => denied(format!("no pod on node {node} runs as {id}")),
            Err(why) => Err(NotDelegated::Unavailable(why)),
        }
    }

    /// Whether a pod that has not ended runs as this identity on this node.
    async fn is_there(&self, node: &str, id: &SpiffeId) -> Result<bool, String> {
        let late = |_| format!("the API server did not answer within {PATIENCE:?}");
        let permit = timeout(PATIENCE, self.at_once.acquire()).await.map_err(late)?;
        let _permit = permit.map_err(|error| error.to_string())?;
        let fields = format!(
            "spec.nodeName={node},spec.serviceAccountName={},status.phase!=Succeeded,\
             status.phase!=Failed",
            id.service_account()
        );
        let api: Api<Pod> = Api::namespaced(self.client.clone(), id.namespace());
        let list = ListParams::default().fields(&fields).limit(1);
        let pods = timeout(PATIENCE, api.list_metadata(&list)).await.map_err(late)?;
        Ok(!pods.map_err(|error| error.to_string())?.items.is_empty())
    }
}

impl Delegation for NodeAgents {
    fn check<'a>(
        &'a self,
        caller: &'a Verified,
        id: &'a SpiffeId,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotDelegated>> + Send + 'a>> {
        Box::pin(self.may(caller, id))
    }
}

#[cfg(test)]
mod tests;
