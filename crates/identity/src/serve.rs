//! Connections: TLS, HTTP/2 or HTTP/1.1, and their end.
//!
//! In: a bound port, TLS settings that may change, a gRPC service. Out: each request with the
//! `Peer` of its connection.
//!
//! A connection ends with the certificate that opened it: GOAWAY first, so that the client opens
//! the next one with its new certificate while streams run out.
//!
//! **Invariant:** a peer that does not speak, or proves nothing, costs a bounded time; handshakes
//! under way are bounded in number; every task is owned by the call to `serve`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::authenticate::Peer;
use crate::spiffe::TrustDomain;
use crate::stats::Stats;

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; the oldest gives way to a new one. An honest one takes milliseconds, so
/// only those that wait for nothing grow old.
const HANDSHAKES: usize = 1024;
/// Time until the first call of somebody who is believed: an open connection costs memory.
const FIRST_CALL: Duration = Duration::from_secs(20);
/// Time for the next request of an HTTP/1.1 connection, head and all.
const NEXT_REQUEST: Duration = Duration::from_secs(120);
/// Bytes of requests of a stream that may come before it is read, which may take a while when
/// thousands come at once.
const WINDOW: u32 = 64 << 10;

/// The gRPC status of callers who are not believed.
const UNAUTHENTICATED: &[u8] = b"16";

/// What connections are served with.
#[derive(Clone)]
pub struct Connections {
    /// TLS settings for the next connection.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// The mesh whose certificates count.
    pub trust_domain: TrustDomain,
    /// Counters.
    pub stats: Arc<Stats>,
    /// True = no new connections; open ones end.
    pub stopped: watch::Receiver<bool>,
    /// Time that open streams have to end after GOAWAY; what is left is cut.
    pub grace: Duration,
    /// Age at which a connection takes no new streams; none = never. Those that are open go on.
    pub max_age: Option<Duration>,
}

/// Serve a port until told to stop, and until its connections have ended.
pub async fn serve<S>(listener: TcpListener, service: S, mut connections: Connections)
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let mut tasks = JoinSet::new();
    let mut handshakes: VecDeque<(AbortHandle, Weak<()>)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = connections.stopped.wait_for(|stopped| *stopped) => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: others must end before this can go on.
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shaking = Arc::new(());
        let since = Arc::downgrade(&shaking);
        let task = connection(stream, shaking, service.clone(), connections.clone());
        handshakes.push_back((tasks.spawn(task), since));
        while handshakes.front().is_some_and(|(_, since)| since.strong_count() == 0) {
            handshakes.pop_front();
        }
        if handshakes.len() > HANDSHAKES {
            handshakes.retain(|(_, since)| since.strong_count() > 0);
        }
        if handshakes.len() > HANDSHAKES
            && let Some((oldest, _)) = handshakes.pop_front()
        {
            connections.stats.handshake_failures.add(1);
            oldest.abort();
        }
    }
    drop(listener);
    let grace = connections.grace;
    let ended = timeout(grace, async { while tasks.join_next().await.is_some() {} });
    if ended.await.is_err() {
        tracing::warn!("connections did not end within {grace:?}; they are cut");
    }
}

/// One connection, from handshake to end. `shaking` is dropped when the handshake is over.
async fn connection<S>(stream: TcpStream, shaking: Arc<()>, service: S, connections: Connections)
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let address = stream.peer_addr().ok();
    // Small messages must not wait for each other; without this they are merely slower.
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&connections.tls.borrow()));
    let handshake = timeout(HANDSHAKE, acceptor.accept(stream)).await;
    drop(shaking);
    let why = match handshake {
        Ok(Ok(stream)) => {
            connections.stats.connections.add(1);
            return speak(stream, service, connections).await;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no handshake within {HANDSHAKE:?}"),
    };
    connections.stats.handshake_failures.add(1);
    tracing::debug!(?address, "connection refused: {why}");
}

/// HTTP until either side, or the peer's certificate, ends.
async fn speak<S>(stream: TlsStream<TcpStream>, service: S, mut connections: Connections)
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer::of(certificate.map(|der| &**der), &connections.trust_domain);
    let end = match &peer.certificate {
        Some(Ok(verified)) => Some(verified.ends),
        _ => None,
    };
    let believed = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&believed);
    let service = service
        .map_request(move |request: http::Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            request
        })
        .map_response(move |response: http::Response<Body>| {
            let refused = response.headers().get("grpc-status");
            let refused = refused.is_some_and(|status| status.as_bytes() == UNAUTHENTICATED)
                || response.status() == http::StatusCode::UNAUTHORIZED;
            note.fetch_or(!refused, Ordering::Relaxed);
            response
        });
    let mut http = auto::Builder::new(TokioExecutor::new());
    // An API server calls webhooks by HTTP/1.1. It keeps connections for 90 s and closes them first.
    http.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_REQUEST);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(WINDOW)
        // An agent has a few; a storm of certificate requests shares one connection too.
        .max_concurrent_streams(1024);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = pin!(serving);
    let mut patience = Some(Instant::now() + FIRST_CALL);
    let mut age = connections.max_age.map(|age| Instant::now() + age);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            () = until(end) => break,
            () = until(patience) => {
                if !believed.load(Ordering::Relaxed) {
                    break;
                }
                patience = None;
            }
            () = until(age) => {
                serving.as_mut().graceful_shutdown();
                age = None;
            }
            _ = connections.stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    serving.as_mut().graceful_shutdown();
    // Streams end with the credential too; what does not is cut.
    let _ = timeout(connections.grace, serving).await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
