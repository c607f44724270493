//! Serves key, certificate and roots to Envoy: SDS, state of the world, over a unix socket, on which
//! Envoy also tells of connections.
//!
//! In: the state of the certificate. Out: for each stream the secrets that it names, again whenever
//! they change; a name that is not there yet is answered when it is.
//!
//! **Invariant:** a secret goes only to a process of the own user or of root, which the kernel
//! names; the folder and the socket are closed to others before that.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use envoy_api::Any;
use envoy_api::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_api::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_api::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_api::secrets::{self, ROOTS, WORKLOAD_CERTIFICATE};
use prost::Name as _;
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::certificates::State;
use crate::connections::Connections;

/// The service.
struct Sds(watch::Receiver<State>);

/// What one stream has asked for and been sent.
struct Session {
    state: watch::Receiver<State>,
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    names: Vec<String>,
    /// Version of the state that was sent last.
    sent: Option<u64>,
    /// Of the last response.
    nonce: u64,
}

/// Serve on a socket, for ever.
pub(crate) async fn serve(
    listener: UnixListener,
    state: watch::Receiver<State>,
    connections: Connections,
) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let peers = UnixListenerStream::new(listener).filter(move |stream| {
        // A connection that failed while it came is nobody's.
        stream.as_ref().is_ok_and(|stream| is_let_in(stream.peer_cred(), own))
    });
    let server = Server::builder()
        .add_service(SecretDiscoveryServiceServer::new(Sds(state)))
        .add_service(AccessLogServiceServer::new(connections))
        .serve_with_incoming(peers);
    server.await.context("serving secrets")
}

/// Whether a process may have the secrets.
fn is_let_in(peer: io::Result<UCred>, own: u32) -> bool {
    match peer {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(user = peer.uid(), process = peer.pid(), "refused to give secrets");
            false
        }
        Err(error) => {
            tracing::warn!("refused to give secrets to an unknown process: {error}");
            false
        }
    }
}

/// Open the socket; one that an earlier process left is replaced.
pub(crate) fn bind(socket: &Path) -> Result<UnixListener> {
    let name = || format!("opening the socket {}", socket.display());
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(name);
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(name)?;
    // Nobody was let in before: the process creates everything for its own user alone.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).with_context(name)?;
    Ok(listener)
}

/// The secret of a name; none if it is not there, or nobody knows the name.
fn secret(state: &State, name: &str) -> Option<Secret> {
    match name {
        WORKLOAD_CERTIFICATE => {
            let certificate = state.certificate.as_ref()?;
            let key = certificate.key.to_pem().ok()?;
            Some(secrets::certificate(&certificate.chain, &key))
        }
        ROOTS if !state.roots.is_empty() => Some(secrets::roots(&state.roots)),
        _ => None,
    }
}

// === impl Sds ===

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        // Full: Envoy has not read the last one, and the session waits with it.
        let (responses, stream) = mpsc::channel(1);
        let session = Session {
            state: self.0.clone(),
            requests: request.into_inner(),
            responses,
            names: Vec::new(),
            sent: None,
            nonce: 0,
        };
        // Ends with its stream.
        tokio::spawn(session.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets"))
    }
}

// === impl Session ===

impl Session {
    async fn run(mut self) {
        loop {
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.take(request),
                    // Envoy is gone.
                    Ok(None) | Err(_) => return,
                },
                changed = self.state.changed() => if changed.is_err() { return },
                () = self.responses.closed() => return,
            }
            if let Some(response) = self.response()
                && self.responses.send(Ok(response)).await.is_err()
            {
                return;
            }
        }
    }

    fn take(&mut self, request: DiscoveryRequest) {
        if let Some(error) = request.error_detail {
            tracing::error!(names = ?self.names, "Envoy rejects a secret: {}", error.message);
        }
        // What was said before the last response was read.
        if !request.response_nonce.is_empty() && request.response_nonce != self.nonce.to_string() {
            return;
        }
        if request.resource_names != self.names {
            self.names = request.resource_names;
            self.sent = None;
        }
    }

    /// What is to be sent now, if anything.
    fn response(&mut self) -> Option<DiscoveryResponse> {
        let state = self.state.borrow_and_update();
        if self.sent == Some(state.version) {
            return None;
        }
        let secrets = self.names.iter().filter_map(|name| secret(&state, name));
        let resources: Vec<Any> = secrets.map(|secret| Any::pack(&secret)).collect();
        if resources.is_empty() {
            return None;
        }
        self.sent = Some(state.version);
        self.nonce += 1;
        Some(DiscoveryResponse {
            version_info: state.version.to_string(),
            resources,
            type_url: Secret::type_url(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }
}
