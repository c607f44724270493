//! HTTP/1.1 calls to neighbours: Envoy's admin pages, the application.
//!
//! In: where, and a request. Out: the answer, or why there is none. A connection serves one call:
//! there are few, and what is probed must accept connections.
//!
//! **Invariant:** never waits longer than it was told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// Longest page of Envoy that is read whole.
const LONGEST: usize = 1 << 20;
/// Time for a page of Envoy.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the proxy hands over to its workload comes from here: rules of redirection leave it alone.
const FROM: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)));

/// One call, whose time is bounded. The body of the answer is not.
pub(crate) async fn send(
    to: SocketAddr,
    tls: bool,
    request: Request<Empty<Bytes>>,
    patience: Duration,
) -> Result<Response<Incoming>> {
    let call = async {
        let stream = connect(to).await?;
        if !tls {
            return exchange(stream, request).await;
        }
        let name = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
        let name = name.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
        let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let name = name.unwrap_or_else(|| ServerName::from(to.ip()));
        let connector = TlsConnector::from(Arc::clone(&UNVERIFIED));
        exchange(connector.connect(name, stream).await.context("TLS")?, request).await
    };
    tokio::time::timeout(patience, call)
        .await
        .map_err(|_| anyhow!("no answer within {patience:?}"))?
}

/// A connection to an address of the own pod, past the rules of redirection.
pub(crate) async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let (socket, from) = match to.is_ipv4() {
        true => (TcpSocket::new_v4()?, FROM.0),
        false => (TcpSocket::new_v6()?, FROM.1),
    };
    // Without rules there may be no such address, and no need for one.
    let _ = socket.bind((from, 0).into());
    let stream = socket.connect(to).await.with_context(|| format!("connecting to {to}"))?;
    // A hint only.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the body of the answer; errors reach the call.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// A page of Envoy's admin pages, which must be 200.
pub(crate) async fn admin(admin: SocketAddr, method: http::Method, path: &str) -> Result<String> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, admin.to_string())
        .body(Empty::new())?;
    let page = async {
        let answer = send(admin, false, request, PATIENCE).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
        ensure!(status.is_success(), "{path} answers {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    let page = tokio::time::timeout(PATIENCE, page).await;
    page.map_err(|_| anyhow!("{path} does not end within {PATIENCE:?}"))?
}

/// TLS to the own application, of which nothing is to be proved: kubelet does not ask either.
static UNVERIFIED: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    #[allow(clippy::expect_used, reason = "the provider has what its own defaults need")]
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let anybody = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    Arc::new(anybody.with_no_client_auth())
});

/// Takes whoever holds the key of the certificate that it presents.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

/// That the server holds the key of its certificate is checked as ever.
macro_rules! checks_signature {
    ($($name:ident),*) => {$(
        fn $name(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let known = &self.0.signature_verification_algorithms;
            rustls::crypto::$name(message, certificate, signature, known)
        }
    )*};
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    checks_signature!(verify_tls12_signature, verify_tls13_signature);

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
