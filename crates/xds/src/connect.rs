//! What the server asks of the controller, and tells it.
//!
//! **Invariant:** free of gRPC: a refusal says why, the server picks the status code.

use std::future::Future;
use std::sync::Arc;

use envoy_api::envoy::config::core::v3::Node;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::publication::{Publisher, ScopeId};
use crate::session::{Notice, Rejection};
use crate::streams::{Protocol, StreamId};

/// Admits proxies and finds their scope.
pub trait Connector: Send + Sync + 'static {
    /// Called once per stream, for its first request. Nothing is sent before it returns.
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<Connection, Refused>> + Send;
}

/// A proxy that opened a stream.
#[derive(Debug)]
pub struct ConnectRequest {
    /// The stream.
    pub stream: StreamId,
    /// The variant of xDS it speaks.
    pub protocol: Protocol,
    /// `node.id`, never empty.
    pub node_id: Arc<str>,
    /// The node of the first request; later ones are ignored.
    pub node: Node,
    /// Extensions of the HTTP request, such as the transport's `TcpConnectInfo` or
    /// `TlsConnectInfo` with the peer's certificates, and what middleware added.
    pub extensions: http::Extensions,
}

/// An admitted proxy.
pub struct Connection {
    /// The proxy's scope, which may change at any time. `None` = not known yet: the stream waits.
    /// A dropped sender ends the stream with UNAVAILABLE.
    pub scope: watch::Receiver<Option<ScopeId>>,
    /// Where the views come from.
    pub publisher: Arc<Publisher>,
    /// When the stream is ended, because what the peer was admitted by ends then. The peer comes
    /// back with something newer, and is sent only what differs.
    pub until: Option<Instant>,
    /// Dropped when the stream ends, however it ends.
    pub guard: Box<dyn Send + Sync>,
}

/// Why a proxy is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not now: sources are not synced, or the replica drains. The proxy tries again.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The peer may not be what its node says.
    #[error("node {node_id} denied: {reason}")]
    Denied {
        /// `node.id`.
        node_id: Arc<str>,
        /// What does not fit.
        reason: String,
    },
    /// The node makes no sense.
    #[error("node {node_id} is invalid: {reason}")]
    Invalid {
        /// `node.id`.
        node_id: Arc<str>,
        /// What is wrong.
        reason: String,
    },
}

/// Something that happened on a stream and the controller should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The stream.
    pub stream: StreamId,
    /// Its proxy.
    pub node_id: Arc<str>,
    /// What happened.
    pub what: What,
}

/// What happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The proxy refused a response.
    Rejected(Rejection),
    /// A wait ended by its limit.
    Notice(Notice),
}
