//! Admits proxies: turns the node of a stream into a proxy that the loop knows.
//!
//! In: the first request of a stream. Out: `Connected` and, when the stream ends, `Disconnected`.
//!
//! **Invariant:** nothing is served before the sources are synced; on the secure port a proxy is
//! what its credential proves.

use std::sync::{Arc, PoisonError};

use envoy_api::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use model::rows::Locality;
use model::{Capabilities, EnvoyVersion, Proxy, ProxyKey};
use prost_types::value::Kind;
use tokio::sync::{mpsc, watch};
use xds::{ConnectRequest, Connection, Connector, Protocol, Refused};

use crate::claims::Policy;
use crate::event::Event;
use crate::world::Shared;

/// The connector of every stream.
pub(crate) struct StreamConnector {
    inbox: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    policy: Policy,
}

/// Says that a stream ended, when dropped.
struct Guard {
    inbox: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    key: ProxyKey,
}

// === impl StreamConnector ===

impl StreamConnector {
    /// A connector that speaks to this inbox.
    pub(crate) fn new(inbox: mpsc::Sender<Event>, shared: Arc<Shared>, policy: Policy) -> Self {
        Self { inbox, shared, policy }
    }
}

impl Connector for StreamConnector {
    async fn connect(&self, request: ConnectRequest) -> Result<Connection, Refused> {
        let ConnectRequest { stream, protocol, node_id, node, extensions } = request;
        let proxy = proxy(&node, protocol)
            .map_err(|reason| Refused::Invalid { node_id: Arc::clone(&node_id), reason })?;
        let verified = self
            .policy
            .check(&node, &proxy, &extensions)
            .map_err(|reason| Refused::Denied { node_id: Arc::clone(&node_id), reason })?;
        if !*self.shared.ready.borrow() {
            return Err(Refused::NotReady("sources are not synced yet".to_owned()));
        }
        let identity = verified.as_ref().map(|v| tracing::field::display(&v.id));
        tracing::info!(proxy = %node_id, stream = stream.0, identity, "proxy connected");
        let key = ProxyKey(stream.0);
        let (scope, assigned) = watch::channel(None);
        self.inbox
            .send(Event::Connected { key, proxy: Box::new(proxy), scope })
            .await
            .map_err(|_| Refused::NotReady("the controller stops".to_owned()))?;
        // Only now: an end is said of what was said to be there.
        let (inbox, shared) = (self.inbox.clone(), Arc::clone(&self.shared));
        let guard = Guard { inbox, shared, key };
        let publisher = Arc::clone(&self.shared.publisher);
        let until = verified.map(|verified| verified.ends);
        Ok(Connection { scope: assigned, publisher, until, guard: Box::new(guard) })
    }
}

/// The proxy that a node describes.
fn proxy(node: &Node, protocol: Protocol) -> Result<Proxy, String> {
    let text = |key: &str| match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    };
    let capabilities = Capabilities::of(version(node), protocol == Protocol::Delta);
    let mut proxy = Proxy::parse(&node.id, text("NAMESPACE").as_deref(), capabilities)
        .map_err(|error| error.to_string())?;
    if let Some(at) = &node.locality {
        proxy.locality = Locality {
            region: Arc::from(&*at.region),
            zone: Arc::from(&*at.zone),
            subzone: Arc::from(&*at.sub_zone),
        };
    }
    let sds = node.metadata.as_ref().and_then(|m| m.fields.get("SDS"));
    proxy.capabilities.mutual_tls =
        matches!(sds.and_then(|v| v.kind.as_ref()), Some(Kind::BoolValue(true)));
    proxy.captures = text("INTERCEPTION_MODE").as_deref() != Some("NONE");
    let labels = node.metadata.as_ref().and_then(|m| m.fields.get("LABELS"));
    if let Some(Kind::StructValue(labels)) = labels.and_then(|v| v.kind.as_ref()) {
        for (key, value) in &labels.fields {
            if let Some(Kind::StringValue(value)) = &value.kind {
                proxy.labels.insert(Arc::from(&**key), Arc::from(&**value));
            }
        }
    }
    Ok(proxy)
}

/// Version of the proxy's Envoy.
fn version(node: &Node) -> Option<EnvoyVersion> {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type
    else {
        return None;
    };
    let version = build.version.as_ref()?;
    Some(EnvoyVersion { major: version.major_number, minor: version.minor_number })
}

// === impl Guard ===

impl Drop for Guard {
    fn drop(&mut self) {
        tracing::info!(stream = self.key.0, "proxy disconnected");
        if self.inbox.try_send(Event::Disconnected(self.key)).is_err() {
            // When the inbox is full the loop is awake anyway, and looks here too.
            let ended = self.shared.ended.lock();
            ended.unwrap_or_else(PoisonError::into_inner).push(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_does_not_fit_into_the_inbox_is_kept() {
        let (inbox, _events) = mpsc::channel(1);
        let shared = Arc::new(Shared::default());
        for key in 1..=2 {
            let (inbox, shared) = (inbox.clone(), Arc::clone(&shared));
            drop(Guard { inbox, shared, key: ProxyKey(key) });
        }
        assert_eq!(*shared.ended.lock().expect("nothing panicked"), [ProxyKey(2)]);
    }
}
