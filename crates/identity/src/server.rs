//! Services for callers who proved who they are.
//!
//! In: calls. Out: the certificate service, and a layer before any gRPC service that adds the
//! caller's `Verified` to the request's extensions, or answers UNAUTHENTICATED.
//!
//! **Invariant:** a service behind the layer never sees a request without a verified caller.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::{Request, Response, Status};

use crate::api::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::api::{IstioCertificateRequest, IstioCertificateResponse};
use crate::authenticate::{Authenticator, Peer, Refusal, Verified};
use crate::ca::{CertificateAuthority, NoCertificate};
use crate::csr;
use crate::delegate::{self, Delegation, NotDelegated};

/// Largest request: a CSR and some metadata.
const LARGEST: usize = csr::LONGEST + (16 << 10);

/// Lets only verified callers through.
#[derive(Clone)]
pub struct Authenticated<S> {
    inner: S,
    authenticator: Arc<Authenticator>,
}

/// The certificate service.
pub struct CaService {
    ca: Arc<CertificateAuthority>,
    delegation: Option<Arc<dyn Delegation>>,
}

/// The certificate service behind its layer.
pub type CaServer = Authenticated<IstioCertificateServiceServer<CaService>>;

/// The certificate service of an authority, for callers whom `authenticator` believes. Without a
/// `delegation` each gets certificates of its own identity only.
pub fn ca_server(
    ca: Arc<CertificateAuthority>,
    authenticator: Arc<Authenticator>,
    delegation: Option<Arc<dyn Delegation>>,
) -> CaServer {
    let server = IstioCertificateServiceServer::new(CaService { ca, delegation });
    Authenticated::new(server.max_decoding_message_size(LARGEST), authenticator)
}

// === impl Authenticated ===

impl<S> Authenticated<S> {
    /// Put the layer before a service.
    pub fn new(inner: S, authenticator: Arc<Authenticator>) -> Self {
        Self { inner, authenticator }
    }
}

impl<S: tonic::server::NamedService> tonic::server::NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Authenticated<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The service that said that it is ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let authenticator = Arc::clone(&self.authenticator);
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned();
            match authenticator.authenticate(peer.as_ref(), request.headers()).await {
                Ok(verified) => {
                    request.extensions_mut().insert(verified);
                    inner.call(request).await
                }
                Err(refusal) => {
                    let path = request.uri().path();
                    tracing::info!(path, reason = refusal.reason(), "caller refused: {refusal}");
                    Ok(status_of(&refusal).into_http())
                }
            }
        })
    }
}

fn status_of(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Unavailable(_) => Status::unavailable(refusal.to_string()),
        _ => Status::unauthenticated(refusal.to_string()),
    }
}

// === impl CaService ===

impl CaService {
    /// Whom the certificate is for: the caller, or whom it may stand in for.
    async fn stand_in(
        &self,
        caller: Verified,
        metadata: Option<&prost_types::Struct>,
    ) -> Result<Verified, Status> {
        let checked = async {
            let Some(id) = delegate::asked_for(metadata, self.ca.trust_domain())? else {
                return Ok(None);
            };
            let delegation = self.delegation.as_ref().ok_or_else(|| {
                NotDelegated::Denied("nobody here may ask for another identity".to_owned())
            })?;
            delegation.check(&caller, &id).await.map(|()| Some(id))
        };
        match checked.await {
            Ok(None) => Ok(caller),
            Ok(Some(id)) => {
                tracing::info!(agent = %caller.id, node = caller.node.as_deref(), %id, "on behalf");
                Ok(Verified { id, ..caller })
            }
            Err(why) => {
                self.ca.stats().refused("impersonation");
                tracing::warn!(id = %caller.id, "certificate of another identity refused: {why}");
                Err(match &why {
                    NotDelegated::Denied(_) => Status::permission_denied(why.to_string()),
                    NotDelegated::Identity(_) => Status::invalid_argument(why.to_string()),
                    NotDelegated::Unavailable(_) => Status::unavailable(why.to_string()),
                })
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.extensions().get::<Verified>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no verified caller"))?;
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let caller = self.stand_in(caller, metadata.as_ref()).await?;
        let lifetime = match u64::try_from(validity_duration) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => return Err(Status::invalid_argument("validity_duration is negative")),
        };
        let issued = self.ca.issue(caller, csr, lifetime).await;
        let cert_chain = issued.map_err(|error| match &error {
            NoCertificate::Request(_) => Status::invalid_argument(error.to_string()),
            NoCertificate::Caller(refusal) => status_of(refusal),
            NoCertificate::Authority(_) => Status::unavailable(error.to_string()),
            NoCertificate::Busy(_) => Status::resource_exhausted(error.to_string()),
        })?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
